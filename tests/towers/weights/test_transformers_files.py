"""Folders that transformers loads: the same ids, the same pixels, and back again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from pictures import noise
from unicl.data.image import Frame, fit
from unicl.data.text import load_tokenizer, train_tokenizer, without_end
from unicl.errors import UserError
from unicl.towers.image import ImageSettings
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Published
from unicl.towers.weights.transformers_files import (
    Framing,
    find_tokenizer,
    frame_refusal,
    kind_of,
    read_frame,
    tokenizer_notes,
    write_processor,
    write_tokenizer,
    write_weights,
)

TEXTS = [
    "A photo of a dog's tail, 12 apples!",
    "红色的苹果 on a [SEP] table",
    "",
    'a \ttab  and "quotes"',
    "word " * 40,
]
CLIP, SQUARE = Frame(), Frame(mode="squash")
ALIGN = Frame(mode="squash", scale=346, interpolation="bilinear")
VIT = Frame(mode="squash", interpolation="bilinear")
IMAGENET = Frame(scale=256, interpolation="bilinear")
CASES = (
    (CLIP, 224, CLIP_MEAN, CLIP_STD, "CLIPImageProcessor"),
    (SQUARE, 224, CLIP_MEAN, CLIP_STD, "ChineseCLIPImageProcessor"),
    (ALIGN, 289, HALF, HALF, "EfficientNetImageProcessor"),
    (VIT, 224, HALF, HALF, "ViTImageProcessor"),
    (IMAGENET, 224, IMAGENET_MEAN, IMAGENET_STD, "CLIPImageProcessor"),
    (SQUARE, 224, HALF, HALF, "SiglipImageProcessor"),
)


def tokenizer_of(name):
    return (
        train_tokenizer(TEXTS * 3, vocab_size=600, context=16) if name == "train" else load_tokenizer(name, context=16)
    )


def model(frame, size, *, mean=CLIP_MEAN, std=CLIP_STD):
    image = ImageSettings(size=size, frame=frame)
    return Published(origin="a test", image=image, text=None, width=4, state={}, mean=mean, std=std)


@pytest.mark.parametrize(
    ("name", "kind", "named"),
    [
        ("clip", "clip", "CLIPTokenizer"),
        ("chinese", "bert", "BertTokenizer"),
        ("clip", "plain", None),
        ("chinese", "plain", None),
        ("train", "plain", None),
    ],
)
def test_a_written_tokenizer_gives_our_ids_in_transformers_and_here(name, kind, named, tmp_path):
    ours = tokenizer_of(name)
    files = write_tokenizer(tmp_path, tokenizer=ours, kind=kind)
    assert all(path.is_file() for path in files)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    assert named in (None, type(theirs).__name__)
    found = theirs(TEXTS, padding=True, truncation=True, return_tensors="pt")
    tokens, mask = ours(TEXTS)
    assert torch.equal(found["attention_mask"].bool(), mask)
    assert torch.equal(found["input_ids"][mask], tokens[mask])
    again, real = load_tokenizer(str(tmp_path), context=16)(TEXTS)
    assert torch.equal(again[real], tokens[mask])


def test_typographic_quotes_are_mended_by_a_plain_tokenizer_alone(tmp_path):
    ours = tokenizer_of("clip")
    for kind in ("plain", "clip"):
        (tmp_path / kind).mkdir()
        write_tokenizer(tmp_path / kind, tokenizer=ours, kind=kind)
    text = "the dog’s “tail”"
    plain, clip = (AutoTokenizer.from_pretrained(tmp_path / kind)(text)["input_ids"] for kind in ("plain", "clip"))
    assert plain == ours([text])[0][0].tolist()
    assert clip != plain


def test_a_caption_that_says_a_mark_does_not_end_there(tmp_path):
    ours = tokenizer_of("train")
    write_tokenizer(tmp_path, tokenizer=ours, kind="plain")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "a <eos> dog <pad>"
    assert theirs(text)["input_ids"] == ours([text])[0][0].tolist()


def test_texts_of_fixed_length_are_padded_with_our_padding(tmp_path):
    ours = train_tokenizer(TEXTS, vocab_size=600, context=12, fixed=True)
    write_tokenizer(tmp_path, tokenizer=ours, kind="plain")
    found = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding="max_length", truncation=True)
    assert found["input_ids"] == ours(TEXTS)[0].tolist()


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    assert [kind_of(tokenizer_of(name)) for name in ("clip", "chinese", "train")] == ["clip", "bert", "plain"]
    with pytest.raises(UserError, match="'train' is no 'clip' tokenizer"):
        write_tokenizer(tmp_path, tokenizer=tokenizer_of("train"), kind="clip")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_end_mark_keeps_its_ids(tmp_path):
    ours = without_end(tokenizer_of("chinese"))
    assert kind_of(ours) == "plain"
    write_tokenizer(tmp_path, tokenizer=ours, kind="plain")
    assert AutoTokenizer.from_pretrained(tmp_path)("红苹果")["input_ids"] == ours(["红苹果"])[0][0].tolist()


def test_notes_say_what_the_other_tokenizer_does_not_do():
    assert any("HTML" in note for note in tokenizer_notes(tokenizer_of("clip"), kind="clip"))
    assert any("200 characters" in note for note in tokenizer_notes(tokenizer_of("chinese"), kind="bert"))
    assert tokenizer_notes(tokenizer_of("chinese"), kind="plain") == ()


@pytest.mark.parametrize(("frame", "size", "mean", "std", "kind"), CASES, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("shape", [(300, 300), (301, 427), (512, 365), (97, 131)], ids=str)
def test_a_written_processor_gives_our_pixels_to_one_grey_level(frame, size, mean, std, kind, shape, tmp_path):
    write_processor(
        tmp_path,
        model=model(frame, size, mean=mean, std=std),
        processor_class="CLIPProcessor",
        image_processor_class=kind,
    )
    picture = noise(*shape)
    ours = fit(torch.from_numpy(picture).permute(2, 0, 1), size=size, frame=frame)
    greys = []
    # Its two backends are up to three grey levels apart, by the order of the passes; ours is Pillow's.
    for backend in ("torchvision", "pil"):
        theirs = AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True, backend=backend)
        assert type(theirs).__name__.startswith(kind)
        found = theirs(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
        greys.append(found * torch.tensor(std).view(3, 1, 1) * 255 + torch.tensor(mean).view(3, 1, 1) * 255)
    assert min(off(grey, ours) for grey in greys) <= 1.01
    assert max(off(grey, ours) for grey in greys) <= 3.01
    back = read_frame(tmp_path, size=7)
    assert (back.frame, back.size, back.notes) == (frame, size, ())
    assert np.allclose([back.mean, back.std], [mean, std], atol=1e-9)


def off(theirs, ours):
    """The largest difference, of a picture that may be cut a pixel further up or left: their crop rounds down."""
    moved = [ours, *(torch.roll(ours, (a, b), dims=(1, 2)) for a, b in ((1, 0), (0, 1), (1, 1)))]
    return min(float((theirs - each.float())[:, 1:, 1:].abs().max()) for each in moved)


def test_a_whole_processor_loads_with_both_parts(tmp_path):
    write_tokenizer(tmp_path, tokenizer=tokenizer_of("clip"), kind="clip")
    write_processor(
        tmp_path, model=model(CLIP, 224), processor_class="CLIPProcessor", image_processor_class="CLIPImageProcessor"
    )
    both = AutoProcessor.from_pretrained(tmp_path, local_files_only=True)
    assert type(both).__name__ == "CLIPProcessor"
    found = both(text=TEXTS[:1], images=[Image.fromarray(noise(30, 40))], return_tensors="pt")
    assert found["pixel_values"].shape == (1, 3, 224, 224)
    assert found["input_ids"].tolist() == tokenizer_of("clip")(TEXTS[:1])[0].tolist()


def test_a_frame_that_no_processor_knows_is_refused(tmp_path):
    assert frame_refusal(CLIP) is None
    padded = model(Frame(mode="pad"), 224)
    assert frame_refusal(padded.image.frame)
    with pytest.raises(UserError, match="padded to a square"):
        write_processor(
            tmp_path, model=padded, processor_class="CLIPProcessor", image_processor_class="CLIPImageProcessor"
        )


def written(folder, **content):
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def test_old_spellings_and_defaults_are_read_as_transformers_reads_them(tmp_path):
    found = read_frame(
        written(tmp_path, feature_extractor_type="CLIPFeatureExtractor", size=224, crop_size=224), size=7
    )
    assert (found.frame, found.size, found.mean, found.std) == (CLIP, 224, CLIP_MEAN, CLIP_STD)
    found = read_frame(written(tmp_path, feature_extractor_type="ViTFeatureExtractor", size=384, resample=2), size=7)
    assert (found.frame, found.size, found.mean) == (VIT, 384, HALF)


def test_aligns_published_file_is_pixels_from_minus_one_to_one(tmp_path):
    square = {"height": 346, "width": 346}
    crop = {"height": 289, "width": 289}
    folder = written(
        tmp_path,
        image_processor_type="EfficientNetImageProcessor",
        size=square,
        crop_size=crop,
        do_center_crop=True,
        do_normalize=False,
        include_top=False,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        resample=2,
    )
    found = read_frame(folder, size=600)
    assert (found.frame, found.size) == (ALIGN, 289)
    assert np.allclose([found.mean, found.std], [HALF, HALF])


def test_efficientnets_second_division_is_counted(tmp_path):
    folder = written(tmp_path, image_processor_type="EfficientNetImageProcessor")
    theirs = AutoImageProcessor.from_pretrained(folder)
    picture = np.full((346, 346, 3), 200, dtype=np.uint8)
    wanted = theirs(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0, :, 0, 0]
    found = read_frame(folder, size=346)
    ours = (200 / 255 - np.array(found.mean)) / np.array(found.std)
    assert np.allclose(ours, wanted.numpy(), atol=1e-5)


def test_a_processor_of_version_five_is_read(tmp_path):
    write_tokenizer(tmp_path, tokenizer=tokenizer_of("clip"), kind="clip")
    write_processor(
        tmp_path, model=model(CLIP, 96), processor_class="CLIPProcessor", image_processor_class="CLIPImageProcessor"
    )
    AutoProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "preprocessor_config.json").exists()
    assert read_frame(tmp_path / "again", size=7) == Framing(frame=CLIP, size=96)


@pytest.mark.parametrize(
    "content",
    [
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 336}},
        {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
        {"image_processor_type": "CLIPImageProcessor", "do_resize": False},
        {"image_processor_type": "NoSuchProcessor"},
    ],
)
def test_preprocessing_that_is_not_ours_is_refused(content, tmp_path):
    with pytest.raises(UserError, match=r"no squares|no preprocessing that transformers can read"):
        read_frame(written(tmp_path, **content), size=224)


def test_another_filter_is_told(tmp_path):
    found = read_frame(written(tmp_path, image_processor_type="CLIPImageProcessor", resample=1), size=224)
    assert found.frame == CLIP
    assert "Pillow's filter 1" in found.notes[0]


def test_without_a_file_the_preprocessing_is_assumed_and_told(tmp_path):
    found = read_frame(tmp_path, size=96)
    assert (found.frame, found.size, found.mean) == (CLIP, 96, CLIP_MEAN)
    assert "no preprocessor_config.json" in found.notes[0]
    assert read_frame(None, size=96, otherwise=Framing(frame=SQUARE, size=96)).frame == SQUARE


def test_a_tokenizer_is_found_by_its_files_or_by_the_vocabulary(tmp_path):
    assert find_tokenizer(tmp_path, vocab_size=49_408) == "clip"
    assert find_tokenizer(None, vocab_size=21_128) == "chinese"
    with pytest.raises(UserError, match="knows 30,522 tokens, and there is no tokenizer beside it"):
        find_tokenizer(tmp_path, vocab_size=30_522)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert find_tokenizer(tmp_path, vocab_size=49_408) == str(tmp_path)


def test_weights_are_marked_for_torch_and_tied_ones_are_written_twice(tmp_path):
    shared = torch.ones(2, 3)
    write_weights(tmp_path, {"a": shared, "b": shared, "c": shared.T}, {"model_type": "clip"})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == ["a", "b", "c"]
        assert file.get_tensor("c").shape == (3, 2)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "clip"}
