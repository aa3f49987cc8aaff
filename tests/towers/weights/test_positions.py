from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cn_clip.clip import model as cn_clip
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from torch.nn.functional import interpolate
from transformers import CLIPVisionConfig, CLIPVisionModel

from unicl.data.image import Frame
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.positions import resample_grid, resample_line, resized
from unicl.towers.weights.published import Published, wanted

VIT = "image.backbone.pos_embed"
WORDS = "text.backbone.embeddings.position_embedding.weight"
SWIN = {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}


def published(image=None, text=None, *, vocab=50):
    """A random model in its published form."""
    torch.manual_seed(0)
    towers = {}
    if image is not None:
        towers["image"] = ImageTower(image, width=16)
    if text is not None:
        towers["text"] = TextTower(text, width=16, vocab_size=vocab, eos_id=2, pad_id=0)
    state = {f"{side}.{k}": v for side, tower in towers.items() for k, v in tower.state_dict().items()}
    # Some positions start at zero, which any resampling keeps.
    state = {k: torch.randn_like(v) if "pos" in k and v.is_floating_point() else v for k, v in state.items()}
    state = {k: v for k, v in state.items() if k not in ("image.mean", "image.std")}
    return Published(
        origin="a test", image=image, text=text, width=16, state=state, eos_id=2, pad_id=0, vocab_size=vocab
    )


def built(model):
    """Its towers, loaded strictly."""
    towers = []
    for side, tower in (
        ("image", model.image and ImageTower(model.image, width=16)),
        ("text", model.text and TextTower(model.text, width=16, vocab_size=model.vocab_size, eos_id=2, pad_id=0)),
    ):
        if tower is not None:
            own = {k.removeprefix(f"{side}."): v for k, v in model.state.items() if k.startswith(f"{side}.")}
            tower.load_state_dict({k: v for k, v in tower.state_dict().items() if k in ("mean", "std")} | own)
        towers.append(tower and tower.eval())
    return towers


def vit(size=32, **fields):
    return ImageSettings(name="test_vit", size=size, **fields)


def theirs(table_PF, *, side):
    """What a resize function of another project makes of a table, for a grid of ``side`` rows and columns."""
    visual = SimpleNamespace(grid_size=(side, side))
    return {"visual.positional_embedding": table_PF.clone()}, SimpleNamespace(visual=visual)


@pytest.mark.parametrize("side", [2, 5, 12])
def test_a_grid_is_resampled_as_open_clip_does_it(side):
    table = torch.randn(1 + 49, 8)
    state, model = theirs(table, side=side)
    resize_pos_embed(state, model)
    assert torch.equal(resample_grid(table, old=(7, 7), new=(side, side)), state["visual.positional_embedding"])


@pytest.mark.parametrize("side", [2, 5, 12])
def test_with_aligned_corners_a_grid_is_resampled_as_cn_clip_does_it(side):
    table = torch.randn(1 + 49, 8)
    state, model = theirs(table, side=side)
    cn_clip.resize_pos_embed(state, model)
    ours = resample_grid(table, old=(7, 7), new=(side, side), align_corners=True, antialias=False)
    assert torch.equal(ours, state["visual.positional_embedding"])


@pytest.mark.parametrize("size", [16, 56])
def test_without_antialias_a_grid_is_resampled_as_transformers_does_it(size):
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=8
    )
    embeddings = CLIPVisionModel(config).embeddings
    table = embeddings.position_embedding.weight.detach()
    places = (size // 8) ** 2
    drawn = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + places, 8), size, size)[0]
    ours = resample_grid(table, old=(4, 4), new=(size // 8, size // 8), antialias=False)
    torch.testing.assert_close(ours, drawn, rtol=0, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_grid_is_a_picture_to_torch(align_corners, antialias):
    table = torch.randn(12, 3)
    picture = table.view(3, 4, 3).permute(2, 0, 1)[None]
    drawn = interpolate(picture, size=(5, 7), mode="bicubic", align_corners=align_corners, antialias=antialias)
    ours = resample_grid(table, old=(3, 4), new=(5, 7), align_corners=align_corners, antialias=antialias)
    assert torch.equal(ours, drawn[0].permute(1, 2, 0).reshape(35, 3))


def test_aligned_corners_keep_the_corners():
    table = torch.randn(16, 3)
    ours = resample_grid(table, old=(4, 4), new=(7, 7), align_corners=True, antialias=False)
    torch.testing.assert_close(ours[[0, 6, 42, 48]], table[[0, 3, 12, 15]])


@pytest.mark.parametrize("length", [90, 154])
def test_a_longer_line_is_drawn_out_as_open_clip_does_it(length):
    table = torch.randn(77, 8)
    state = {"positional_embedding": table.clone()}
    resize_text_pos_embed(state, SimpleNamespace(positional_embedding=torch.zeros(length, 8)))
    assert torch.equal(resample_line(table, length=length), state["positional_embedding"])


def test_a_shorter_line_is_the_first_of_it():
    table = torch.randn(10, 2)
    assert torch.equal(resample_line(table, length=4, reserved=2), table[:6])


def test_reserved_rows_are_kept_and_not_mixed_in():
    table = torch.randn(10, 2)
    longer = resample_line(table, length=20, reserved=2)
    assert torch.equal(longer[:2], table[:2])
    assert torch.equal(longer[2:], resample_line(table[2:], length=20))


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_vision_transformer_keeps_its_class_tokens_row(align_corners):
    model = published(vit())
    other = resized(model, size=64, context=None, align_corners=align_corners)
    table = model.state[VIT][0]
    ours = resample_grid(table, old=(2, 2), new=(4, 4), align_corners=align_corners, antialias=not align_corners)
    assert torch.equal(other.state[VIT][0], ours)
    assert torch.equal(other.state[VIT][0, 0], table[0])
    assert {k for k in model.state if model.state[k] is not other.state[k]} == {VIT}
    assert other.image == vit(64)
    (note,) = other.notes
    assert "from 2 x 2 to 4 x 4" in note
    assert f"align_corners {align_corners}" in note
    assert built(other)[0](torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).whole.shape == (1, 16)


def test_the_same_size_changes_nothing():
    model = published(vit(), TextSettings(layers=1, dim=16, heads=2, context=10))
    assert resized(model, size=32, context=10) is model
    assert resized(model, size=None, context=None) is model


def test_a_model_resized_by_the_library_that_made_it_gives_the_same_features():
    """timm's own function for another size, against ours."""
    model = published(vit())
    other = built(resized(model, size=64, context=None))[0]
    tower = built(model)[0]
    tower.backbone.set_input_size(img_size=(64, 64))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(other(pixels).whole, tower(pixels).whole, rtol=0, atol=1e-6)


def test_the_attention_pool_of_a_resnet_is_resampled():
    settings = ImageSettings(name="resnet50_clip", size=64, head="none")
    key = "image.backbone.head.pos_embed"
    shapes = wanted(image=settings, text=None, width=16, scale=False)
    table = torch.randn(shapes[key].shape)
    model = Published(origin="a test", image=settings, text=None, width=16, state={**shapes, key: table})
    other = resized(model, size=128, context=None)
    assert torch.equal(other.state[key], resample_grid(table, old=(2, 2), new=(4, 4)))
    assert torch.equal(other.state[key][0], table[0])


def test_an_attention_pool_of_our_own_is_resampled():
    model = published(ImageSettings(name="test_resnet", size=64, pool="map"))
    other = resized(model, size=96, context=None)
    key = "image.pool.attention.pos_embed"
    assert torch.equal(other.state[key], resample_grid(model.state[key], old=(2, 2), new=(3, 3)))
    assert built(other)[0](torch.zeros(1, 3, 96, 96, dtype=torch.uint8)).whole.shape == (1, 16)


def test_relative_positions_go_through_timm():
    """At 16 pixels there are four places a side, and a window of seven shrinks to them."""
    model = published(ImageSettings(name="swin_tiny_patch4_window7_224", size=56, options=SWIN))
    other = resized(model, size=16, context=None)
    assert any("relative_position_bias_table" in note for note in other.notes)
    tower = built(model)[0]
    tower.backbone.set_input_size(img_size=(16, 16), window_size=4, always_partition=None)
    made = built(other)[0]
    for key, value in made.state_dict().items():
        if "relative_position_bias_table" in key and value.shape == tower.state_dict()[key].shape:
            torch.testing.assert_close(value, tower.state_dict()[key])
    assert made(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).whole.shape == (1, 16)


def test_a_model_without_learned_positions_only_changes_its_size():
    model = published(ImageSettings(name="test_resnet", size=32))
    other = resized(model, size=64, context=None)
    assert other.notes == ()
    assert other.image.size == 64
    assert all(other.state[k] is v for k, v in model.state.items())


def test_the_share_of_a_picture_that_is_cut_out_stays():
    model = published(vit(frame=Frame(scale=40)))
    assert resized(model, size=64, context=None).image.frame.scale == 80


def test_a_size_that_the_patches_do_not_divide_is_an_error():
    with pytest.raises(UserError, match="patches of 16; give a multiple, such as 32"):
        resized(published(replace(vit(), name="vit_tiny_patch16_224", options={"depth": 1})), size=33, context=None)


def tokens(length, *, rows=3):
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (rows, length))
    ids[:, -1] = 2
    return ids, torch.ones(rows, length, dtype=torch.bool)


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_a_shorter_context_gives_the_same_numbers_for_all_texts_that_fit(name):
    model = published(text=TextSettings(name=name, layers=1, dim=16, heads=2, context=12))
    other = resized(model, size=None, context=8)
    ids, mask = tokens(8)
    with torch.no_grad():
        assert torch.equal(built(model)[1](ids, mask).whole, built(other)[1](ids, mask).whole)
    assert "cut from 12 to 8" in other.notes[0]
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        built(other)[1](*tokens(9))


def test_a_longer_context_reads_longer_texts():
    model = published(text=TextSettings(layers=1, dim=16, heads=2, context=8))
    other = resized(model, size=None, context=12)
    assert torch.equal(other.state[WORDS], resample_line(model.state[WORDS], length=12))
    assert "8 positions drawn out to 12" in other.notes[0]
    assert built(other)[1](*tokens(12)).whole.shape == (3, 16)


def test_a_table_that_is_long_enough_stays_as_it_is():
    settings = TextSettings(name="bert", layers=1, dim=16, heads=2, context=8, options={"max_position_embeddings": 20})
    model = published(text=settings)
    for context in (6, 20):
        other = resized(model, size=None, context=context)
        assert other.notes == ()
        assert other.text.options == settings.options
        assert all(other.state[k] is v or torch.equal(other.state[k], v) for k, v in model.state.items())
        assert built(other)[1](*tokens(context)).whole.shape == (3, 16)


def test_a_table_that_is_too_short_is_drawn_out():
    settings = TextSettings(name="bert", layers=1, dim=16, heads=2, context=8, options={"max_position_embeddings": 10})
    other = resized(published(text=settings), size=None, context=15)
    assert other.text.options == {"max_position_embeddings": 15}
    assert built(other)[1](*tokens(15)).whole.shape == (3, 16)


def test_texts_that_are_padded_change_and_the_note_says_so():
    model = published(text=TextSettings(name="siglip", layers=1, dim=16, heads=2, context=8, fixed=True))
    assert "the numbers of all texts change" in resized(model, size=None, context=6).notes[0]


def test_the_tokenizer_at_hand_cuts_at_the_new_length():
    tokenizer = train_tokenizer(["a red flower by the water"], vocab_size=300, context=8)
    model = published(text=TextSettings(layers=1, dim=16, heads=2, context=8), vocab=tokenizer.vocab_size)
    other = resized(replace(model, tokenizer=tokenizer), size=None, context=5)
    assert tokenizer(["a red flower by the water"])[0].shape[1] == 8
    ids = other.tokenizer(["a red flower by the water"])[0]
    assert ids.shape[1] == 5
    assert ids[0, -1] == tokenizer.eos_id


def test_a_tower_that_is_not_there_cannot_be_resized():
    with pytest.raises(UserError, match="no image tower for images of 64"):
        resized(published(text=TextSettings(layers=1, dim=16, heads=2)), size=64, context=None)
    with pytest.raises(UserError, match="no text tower for texts of 9"):
        resized(published(vit()), size=None, context=9)
