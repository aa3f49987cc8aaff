import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from pictures import encoded, noise, picture
from unicl.data.image import Augment, Frame, augment, decode, fit
from unicl.errors import BadImage, UserError
from unicl.space import Slice

BICUBIC = Image.Resampling.BICUBIC


def tensor(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def pixels(image):
    return image.permute(1, 2, 0).numpy().astype(int)


def difference(image, wanted):
    return np.abs(pixels(image) - np.asarray(wanted).astype(int)).max()


def png(width, height, depth=8, colour=2, data=b""):
    """A PNG made by hand: its header may claim any size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    body = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_pixels_are_those_of_the_file(format):
    wanted = noise(7, 9)
    image = decode(encoded(wanted, format))
    assert (image.dtype, image.shape) == (torch.uint8, (3, 7, 9))
    assert difference(image, wanted) == 0


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_compressed_pixels_are_those_that_pillow_reads(format):
    content = encoded(noise(40, 50), format, quality=90)
    assert difference(decode(content), Image.open(BytesIO(content)).convert("RGB")) == 0


def test_an_image_is_read_from_a_file_and_from_the_middle_of_one(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 100 + picture() + b"y" * 100)
    assert torch.equal(decode(Slice(path, 100, len(picture()))), decode(picture()))
    (tmp_path / "a.jpg").write_bytes(picture())
    assert torch.equal(decode(tmp_path / "a.jpg"), decode(picture()))


def test_sixteen_bits_are_scaled_and_not_cut_off():
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(values), format))
        assert difference(image, np.repeat((values / 257)[:, :, None], 3, axis=2)) <= 1


def test_floats_and_long_integers_are_scaled_by_their_range():
    for top in (1.0, 255.0, 65535.0, 1e6):
        values = np.linspace(0, top, 200, dtype=np.float32).reshape(10, 20)
        image = decode(encoded(Image.fromarray(values), "TIFF"))
        assert difference(image, np.repeat((values * 255 / top)[:, :, None], 3, axis=2)) <= 1
    broken = np.array([[np.nan, 0.0], [1.0, -5.0]], dtype=np.float32)
    assert pixels(decode(encoded(Image.fromarray(broken), "TIFF")))[:, :, 0].tolist() == [[0, 0], [255, 0]]
    dark = np.array([[0, 1], [1, 0]], dtype=np.int32)
    assert decode(encoded(Image.fromarray(dark), "TIFF")).max() == 1


def test_cmyk_becomes_the_colours_that_it_shows():
    colour = Image.new("RGB", (16, 16), (200, 60, 30))
    image = decode(encoded(colour.convert("CMYK"), "JPEG", quality=95))
    assert image.shape == (3, 16, 16)
    assert difference(image, np.array(colour)) <= 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    wanted = Image.fromarray(noise(12, 12)).convert(mode)
    format = "TIFF" if mode == "YCbCr" else "PNG"
    image = decode(encoded(wanted, format))
    assert (image.dtype, image.shape) == (torch.uint8, (3, 12, 12))
    assert difference(image, wanted.convert("RGB")) <= 1


def transparent(mode):
    """Left half red, right half nothing."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    if mode == "P":
        flat = Image.new("P", (8, 8), 1)
        flat.putpalette([0, 0, 0, 255, 0, 0])
        flat.paste(0, (4, 0, 8, 8))
        return flat
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "options"), [("RGBA", {}), ("LA", {}), ("P", {"transparency": 0}), ("RGB", {"transparency": (0, 0, 0)})]
)
def test_what_is_transparent_is_white(mode, options):
    image = decode(encoded(transparent(mode), **options))
    assert image[:, :, 4:].min() == 255
    assert image[1:, :, :4].max() < 100
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert pixels(decode(encoded(half))).max() == 127


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(format):
    frames = [Image.new("RGB", (10, 6), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    image = decode(encoded(frames[0], format, save_all=True, append_images=frames[1:]))
    assert image.shape == (3, 6, 10)
    assert difference(image, np.array(frames[0])) <= 12


@pytest.mark.parametrize("orientation", [*range(10), 99])
def test_an_image_is_turned_by_its_exif_tag(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(16, 24), "PNG", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    image = decode(content)
    assert image.shape == (3, wanted.height, wanted.width)
    assert difference(image, wanted) == 0
    assert torch.equal(image, decode(encoded(noise(16, 24)))) == (orientation not in range(2, 9))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture():
    content = encoded(noise(8, 8), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + b"\xff" * 40)
    assert decode(content).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text", "not an image"),
        (b"<html>404</html>" * 50, "not an image"),
        (encoded(noise(60, 60), "JPEG")[:-400], "cut off"),
        (encoded(noise(60, 60), "PNG")[:-2000], "cut off"),
        (encoded(noise(60, 60), "JPEG")[:30], "not an image|cut off|broken"),
        (encoded(noise(60, 60), "WEBP")[:-100], "not an image|cut off|broken"),
        (encoded(noise(60, 60), "GIF")[:-1000], "cut off"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
    ],
)
def test_a_file_that_is_no_whole_image_has_a_short_reason(content, reason):
    with pytest.raises(BadImage, match=f"^({reason})") as caught:
        decode(content)
    assert len(str(caught.value)) < 100


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_damage_is_a_bad_image_or_an_image():
    rng = np.random.default_rng(0)
    files = [encoded(noise(16, 16), format) for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")]
    outcomes = set()
    for number in range(210):
        content = bytearray(files[number % len(files)])
        for place in rng.integers(0, len(content), 6):
            content[place] = rng.integers(256)
        try:
            outcomes.add(decode(bytes(content), max_pixels=10**6).dtype)
        except BadImage:
            outcomes.add("bad")
    assert outcomes == {torch.uint8, "bad"}


def test_a_bomb_is_refused_by_its_header():
    for width, height in ((30_000, 30_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)):
        with pytest.raises(BadImage, match="too large"):
            decode(png(width, height))


def test_the_limit_of_pixels_can_be_lowered():
    content = encoded(noise(20, 30))
    assert decode(content, max_pixels=600).shape == (3, 20, 30)
    with pytest.raises(BadImage, match="too large: 30 x 20 pixels, the limit is 599"):
        decode(content, max_pixels=599)


def test_pillow_keeps_its_own_settings():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    decode(picture())
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@pytest.mark.parametrize("shape", [(480, 640), (333, 500), (100, 80), (64, 64), (1000, 90)])
def test_fitting_is_pillows_bicubic_and_a_centre_crop(shape):
    array = noise(*shape)
    height, width = shape
    size = 64
    short = min(shape)
    scaled = Image.fromarray(array).resize((size * width // short, size * height // short), BICUBIC)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    wanted = scaled.crop((left, top, left + size, top + size))
    fitted = fit(tensor(array), size=size)
    assert (fitted.dtype, fitted.shape, fitted.is_contiguous()) == (torch.uint8, (3, size, size), True)
    if max(shape) <= 4 * short:
        assert difference(fitted, wanted) <= 2


def test_fitting_enlarges_small_images_as_pillow_does():
    array = noise(20, 31)
    wanted = Image.fromarray(array).resize((112, 112), BICUBIC)
    assert difference(fit(tensor(array), size=112, frame=Frame(mode="squash")), wanted) <= 2


def test_squash_keeps_all_and_pad_adds_black():
    array = np.full((40, 80, 3), 200, dtype=np.uint8)
    assert fit(tensor(array), size=32, frame=Frame(mode="squash")).unique().tolist() == [200]
    padded = fit(tensor(array), size=32, frame=Frame(mode="pad"))
    assert padded.shape == (3, 32, 32)
    assert padded[:, 8:24].unique().tolist() == [200]
    assert padded[:, :8].max() == padded[:, 24:].max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 20_000), (2, 2)])
@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_tiny_and_extreme_shapes_fit(shape, mode):
    array = noise(*shape)
    assert fit(tensor(array), size=32, frame=Frame(mode=mode)).shape == (3, 32, 32)
    view = augment(tensor(array), Augment(crop=(0.1, 1.0), jitter=1.0), size=32, rng=np.random.default_rng(0))
    assert view.shape == (3, 32, 32)


def test_an_image_of_the_right_size_is_unchanged():
    array = noise(32, 32)
    assert torch.equal(fit(tensor(array), size=32), tensor(array))


def test_an_unknown_mode_is_named():
    with pytest.raises(UserError, match="mode 'stretch' is not known; it is crop, squash, pad"):
        Frame(mode="stretch")


@pytest.mark.parametrize(
    "settings",
    [
        Augment(),
        Augment(crop=(0.2, 1.0), flip=True),
        Augment(jitter=1.0),
        Augment(gray=1.0),
        Augment(flip=True, jitter=2.5, gray=0.5),
        Augment(policy="autoaugment"),
        Augment(shift=True, flip=True),
    ],
)
def test_the_same_draws_give_the_same_view(settings):
    image = tensor(noise(60, 80))
    views = [augment(image, settings, size=32, rng=np.random.default_rng(5)) for _ in range(2)]
    assert torch.equal(*views)
    assert (views[0].dtype, views[0].shape, views[0].is_contiguous()) == (torch.uint8, (3, 32, 32), True)
    others = [augment(image, settings, size=32, rng=np.random.default_rng(seed)) for seed in range(4)]
    assert any(not torch.equal(views[0], other) for other in others)


def test_views_do_not_depend_on_the_global_random_state():
    image, settings = tensor(noise(60, 80)), Augment(crop=(0.2, 1.0), flip=True, jitter=1.0, gray=0.5)
    views = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        views.append(augment(image, settings, size=32, rng=np.random.default_rng(5)))
    assert torch.equal(*views)


def test_threads_give_the_views_of_one_thread():
    content, settings = encoded(noise(90, 120), "JPEG"), Augment(crop=(0.2, 1.0), flip=True, jitter=1.0, gray=0.3)

    def view(seed):
        return augment(decode(content), settings, size=48, rng=np.random.default_rng(seed))

    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(view, range(24)))
    assert all(torch.equal(one, view(seed)) for seed, one in enumerate(threaded))


def test_a_shifted_view_is_some_square_of_the_framed_picture_and_all_of_its_places_come():
    rows, columns = np.mgrid[0:20, 0:20]
    image = tensor(np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8))
    frame, settings = Frame(mode="pad", scale=20), Augment(shift=True)
    corners = set()
    for seed in range(400):
        view = augment(image, settings, size=18, rng=np.random.default_rng(seed), frame=frame)
        top, left = view[:2, 0, 0].tolist()
        assert torch.equal(view, image[:, top : top + 18, left : left + 18])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(3)}
    middle = fit(image, size=18, frame=frame)
    assert torch.equal(middle, image[:, 1:19, 1:19])


def test_a_crop_is_the_same_piece_that_pillow_cuts():
    """The position is found by its colours: the image is a ramp in both directions."""
    rows, columns = np.mgrid[0:200, 0:200]
    image = tensor(np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8))
    for seed in range(20):
        view = pixels(augment(image, Augment(crop=(0.5, 0.5)), size=100, rng=np.random.default_rng(seed)))
        height = view[99, 50, 0] - view[0, 50, 0]
        width = view[50, 99, 1] - view[50, 0, 1]
        assert abs(height * width / 200**2 - 0.5) < 0.03
        assert 0.72 < width / height < 1.4


def test_half_of_the_images_are_mirrored():
    image = tensor(np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    settings = Augment(crop=(1.0, 1.0), flip=True)
    mirrored = 0
    for seed in range(200):
        view = augment(image, settings, size=64, rng=np.random.default_rng(seed))
        mirrored += bool(view[0, 0, 0] > view[0, 0, -1])
    assert 70 < mirrored < 130


def test_gray_images_have_equal_channels_as_often_as_asked():
    image, settings = tensor(noise(32, 32)), Augment(gray=0.25)
    views = [augment(image, settings, size=16, rng=np.random.default_rng(seed)) for seed in range(200)]
    gray = sum(bool((view[0] == view[1]).all() and (view[1] == view[2]).all()) for view in views)
    assert 30 < gray < 75


def test_jitter_leaves_two_images_in_ten_alone_and_stays_within_its_strength():
    image = tensor(np.full((8, 8, 3), 100, dtype=np.uint8))
    means = np.array([
        float(augment(image, Augment(jitter=1.0), size=8, rng=np.random.default_rng(seed)).float().mean())
        for seed in range(300)
    ])  # fmt: skip
    assert 0.13 < (means == 100).mean() < 0.29
    assert means.min() > 58
    assert means.max() < 142
    assert means.std() > 10


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop", (0.0, 1.0), "crop="),
        ("crop", (0.9, 0.5), "pair of shares"),
        ("crop", (0.5, 1.5), "pair of shares"),
        ("jitter", -1.0, "between 0"),
        ("jitter", 9.0, "SupCon's strength is 1"),
        ("gray", 1.5, "not a probability"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        Augment(**{field: value})


def photo(height, width, seed=0):
    """Pixels with edges, slopes and noise."""
    rng = np.random.default_rng(seed)
    smooth = noise(height, width, seed=seed).astype(int)
    smooth[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 85},
        {"quality": 95, "subsampling": 0},
        {"quality": 60, "subsampling": 1},
        {"quality": 80, "progressive": True},
        {"quality": 90, "keep_rgb": True},
        {"quality": 75, "restart_marker_blocks": 2},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_jpegs_have_pillows_pixels_bit_for_bit(options):
    for height, width in ((37, 53), (64, 48), (1, 9)):
        for pixels_ in (photo(height, width), photo(height, width)[:, :, 0]):
            content = encoded(pixels_, "JPEG", **(options if pixels_.ndim == 3 else {"quality": 80}))
            assert difference(decode(content), Image.open(BytesIO(content)).convert("RGB")) == 0


def test_a_jpeg_is_decoded_without_a_copy_to_planes():
    image = decode(encoded(photo(40, 50), "JPEG"))
    assert image.permute(1, 2, 0).is_contiguous()


def test_a_turned_jpeg_stands_upright_and_several_pictures_give_the_first():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photo(40, 50), "JPEG", quality=95, exif=exif)
    assert difference(decode(content), ImageOps.exif_transpose(Image.open(BytesIO(content)))) == 0
    several = encoded(photo(40, 50), "MPO", save_all=True, append_images=[Image.fromarray(photo(40, 50, seed=1))])
    assert difference(decode(several), Image.open(BytesIO(several)).convert("RGB")) == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_that_is_cut_off_is_refused_wherever_the_cut_is(share, options):
    content = encoded(photo(90, 120), "JPEG", quality=90, **options)
    with pytest.raises(BadImage, match="^cut off"):
        decode(content[: 700 + int(share * (len(content) - 720))])


@pytest.mark.slow
def test_without_simplejpeg_the_pixels_are_the_same():
    content = encoded(photo(60, 80), "JPEG")
    code = (
        "import sys; sys.modules['simplejpeg'] = None; from unicl.data.image import decode; "
        "sys.stdout.buffer.write(decode(sys.stdin.buffer.read()).numpy().tobytes())"
    )
    run = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert run.stdout == decode(content).numpy().tobytes()


@pytest.mark.parametrize("size", [(375, 500), (256, 256), (683, 1024), (90, 60), (230, 400)])
def test_training_crops_are_pillows_within_one_grey_level(size):
    height, width = size
    content = encoded(photo(height, width), "JPEG", quality=90)
    image, counts = decode(content), np.zeros(256, dtype=int)
    for box in (
        (0, 0, height, width),
        (3, 5, height - 9, width - 7),
        (1, 2, height - 1, width // 2),
        (0, 0, 50, width),
    ):
        top, left, tall, wide = box
        ours = fit(image[:, top : top + tall, left : left + wide], size=224, frame=Frame(mode="squash"))
        theirs = Image.open(BytesIO(content)).crop((left, top, left + wide, top + tall)).resize((224, 224), BICUBIC)
        counts += np.bincount(np.abs(pixels(ours) - np.asarray(theirs).astype(int)).ravel(), minlength=256)
    # The rounding of weights to 15 bits can add up to a second level, for about one value in a million.
    assert counts[3:].sum() == 0
    assert counts[2] <= 5
    assert counts[0] / counts.sum() > 0.98


def test_a_fast_decode_is_never_smaller_than_asked_and_near_the_exact_one():
    content = encoded(photo(600, 900), "JPEG", quality=92)
    for shortest, wanted in ((None, 600), (301, 600), (300, 300), (200, 225), (100, 150), (20, 75), (1000, 600)):
        assert decode(content, shortest=shortest).shape[1] == wanted
    assert Augment(crop=(0.25, 1.0), decode="fast").shortest(100, side=100) == 400
    assert Augment().shortest(100, side=100) is None
    assert Augment(shift=True, decode="fast").shortest(224, side=256) == 512
    assert decode(encoded(photo(600, 900)), shortest=10).shape == (3, 600, 900)


def test_decoding_and_resizing_start_no_threads_of_their_own():
    code = (
        "import os, sys, numpy, torch; from unicl.data.image import Augment, augment, decode, fit\n"
        "torch.set_num_threads(4)\n"
        "content = sys.stdin.buffer.read(); before = len(os.listdir('/proc/self/task')); image = decode(content)\n"
        "augment(image, Augment(flip=True), size=224, rng=numpy.random.default_rng(0)); fit(image, size=224)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    content = encoded(photo(375, 500), "JPEG")
    run = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert run.stdout.strip() == b"0"


FRAMES = (
    (Frame(), 224),
    (Frame(mode="squash"), 224),
    (Frame(mode="squash", scale=346, interpolation="bilinear"), 289),
    (Frame(mode="squash", interpolation="bilinear"), 224),
    (Frame(scale=256), 224),
    (Frame(scale=256, interpolation="bilinear"), 224),
)


@pytest.mark.parametrize(("frame", "size"), FRAMES, ids=str)
@pytest.mark.parametrize("shape", [(300, 300), (301, 427), (512, 365), (97, 131), (231, 227), (999, 700)], ids=str)
def test_a_frame_is_torchvisions_resize_and_centre_crop_to_one_grey_level(frame, size, shape):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    picture, side = noise(*shape), frame.side(size)
    scaled = Resize(side if frame.mode == "crop" else (side, side), InterpolationMode(frame.interpolation))
    wanted = CenterCrop(size)(scaled(Image.fromarray(picture)))
    off = np.abs(pixels(fit(tensor(picture), size=size, frame=frame)) - np.asarray(wanted).astype(int))
    counts = np.bincount(off.ravel(), minlength=3)
    assert off.max() <= 2
    assert counts[2] / counts.sum() < 1e-4


def test_transformers_cuts_a_pixel_earlier_where_torchvision_rounds_up():
    from transformers import CLIPImageProcessor

    same = {"image_mean": [0, 0, 0], "image_std": [1 / 255] * 3, "do_resize": False}
    for height, moved in ((224, 0), (225, 0), (226, 0), (227, 1), (228, 0), (231, 1)):
        picture = noise(height, 224)
        theirs = CLIPImageProcessor(**same)(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
        ours = fit(tensor(np.ascontiguousarray(picture)), size=224, frame=Frame(scale=224))
        assert torch.equal(theirs.round().byte()[:, moved:], ours[:, : 224 - moved])
