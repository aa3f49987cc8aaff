"""A model as open_clip's folder: its own code reads it and gives the same numbers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from open_clip_models import RESNET, TEXT, TEXTS, VISION, assert_same, build, clip_tokens, config_of
from unicl.data.image import Frame, fit
from unicl.data.text import Tokenizer, load_tokenizer, train_tokenizer
from unicl.model import ModelSettings, TwoTowers
from unicl.published import model_of, publish
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights import open_clip as layout
from unicl.towers.weights import open_clip_out
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint

WORDS = TextSettings(tokenizer="clip", layers=1, dim=32, heads=2, context=12)
SIZES = {"patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 2}
TINY = ImageSettings(name="vit_base_patch16_clip_quickgelu_224", size=64, options=SIZES)
GELU = {"hidden_act": "gelu"}
BOTH_WAYS = replace(WORDS, name="siglip", fixed=True)
BERT = replace(WORDS, name="bert", tokenizer="chinese", head="gelu_half")


def _model(image: ImageSettings = TINY, text: TextSettings = WORDS) -> TwoTowers:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(text.tokenizer, context=text.context, fixed=text.fixed)
    model = TwoTowers(ModelSettings(image=image, text=text, width=24), tokenizer=tokenizer)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def _written(model: TwoTowers, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    published = publish(model)
    assert open_clip_out.refusal(published) is None
    files = open_clip_out.write(published, folder)
    assert all(file.is_file() for file in files)
    return open_clip.create_model_and_transforms(f"local-dir:{folder}", pretrained_image=False, pretrained_text=False)


def _their_tokens(folder: Path, texts: Sequence[str] = TEXTS) -> Tensor:
    return open_clip.get_tokenizer(f"local-dir:{folder}")(list(texts))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (TINY, WORDS),
        (replace(TINY, name="vit_base_patch16_clip_224", pool="avg"), replace(WORDS, options=GELU, eps=1e-6)),
        (replace(TINY, options=SIZES | {"mlp_ratio": 3.7362}), replace(WORDS, options={"intermediate_size": 100})),
        pytest.param(ImageSettings(name="resnet50_clip", size=64, head="none"), WORDS, marks=pytest.mark.slow),
        (ImageSettings(name="test_vit", size=160), replace(BOTH_WAYS, options=GELU, head="affine")),
        pytest.param(ImageSettings(name="test_vit", size=160, head="affine"), BOTH_WAYS, marks=pytest.mark.slow),
        (ImageSettings(name="test_vit", size=160, head="gelu_double"), replace(BOTH_WAYS, pool="cls")),
        pytest.param(ImageSettings(name="test_convnext", size=160), WORDS, marks=pytest.mark.slow),
        (TINY, replace(BERT, pool="mean")),
        (TINY, replace(BERT, head="pooler")),
    ],
)
def test_open_clip_reads_the_folder_and_gives_our_numbers(
    image: ImageSettings, text: TextSettings, tmp_path: Path
) -> None:
    ours = _model(image, text)
    theirs, *_ = _written(ours, tmp_path / "a")
    # open_clip mends texts for every tokenizer, also where the model did not see mended ones.
    texts = [text for text in TEXTS if text.isascii() and "&" not in text]
    assert_same(ours, theirs, tokens=_their_tokens(tmp_path / "a", texts), texts=texts)

    again = model_of(layout.read(open_checkpoint(tmp_path / "a")))
    assert_same(again, theirs, tokens=_their_tokens(tmp_path / "a"))


def test_open_clips_own_models_come_back_unchanged(tmp_path: Path) -> None:
    for place, vision in enumerate((VISION, RESNET, VISION | {"ls_init_value": 0.1})):
        theirs = build(vision, TEXT, init_logit_bias=-10)
        found = Checkpoint(place=tmp_path, state=theirs.state_dict(), config=config_of(vision, TEXT))
        folder = tmp_path / str(place)
        folder.mkdir()
        open_clip_out.write(layout.read(found), folder)
        model = open_clip.create_model(f"local-dir:{folder}")
        assert model.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_plain_file_is_a_state_dict(tmp_path: Path) -> None:
    ours = _model()
    theirs, *_ = _written(ours, tmp_path)
    other = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    other.load_state_dict(torch.load(tmp_path / open_clip_out.PLAIN, weights_only=True))
    assert_same(ours, other, tokens=clip_tokens())
    assert other.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_preprocessing_goes_along(mode: Any, tmp_path: Path) -> None:
    frame = Frame(mode=mode)
    ours = _model(replace(TINY, frame=frame))
    ours.image.set_normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    _, _, transform = _written(ours, tmp_path)
    pixels = torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8)
    wanted = transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    found = (fit(pixels, size=64, frame=frame) / 255 - ours.image.mean) / ours.image.std
    # One grey level of rounding.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1.1 / 255 / 0.2)


def test_a_trained_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([text.lower() for text in TEXTS] * 3, vocab_size=400, context=12)
    model = TwoTowers(ModelSettings(image=TINY, text=replace(WORDS, tokenizer="train"), width=24), tokenizer=tokenizer)
    theirs, *_ = _written(model.eval(), tmp_path)
    config = json.loads((tmp_path / layout.CONFIG).read_text())["model_cfg"]["text_cfg"]
    assert (config["pool_type"], config["eos_id"]) == ("eos", 2)
    assert_same(model, theirs, tokens=_their_tokens(tmp_path))


@pytest.mark.parametrize(
    ("image", "text", "reason"),
    [
        (replace(TINY, head="mlp"), WORDS, "no head 'mlp' for images"),
        (ImageSettings(name="test_vit", size=96), WORDS, "for its own image size"),
        (ImageSettings(name="test_vit", size=160, pool="map"), WORDS, "open_clip cannot make 'test_vit'"),
        (ImageSettings(name="test_vit", size=160, options={"depth": 1}), WORDS, "without options"),
        (TINY, replace(WORDS, pool="mean"), "it pools 'mean'"),
        (TINY, replace(WORDS, options=GELU), "one switch for QuickGELU"),
        (TINY, replace(BERT, pool="max"), "pools 'max'"),
        (TINY, replace(BERT, head="pooler", pool="mean"), "pools 'mean' with the head 'pooler'"),
        (TINY, replace(BOTH_WAYS, fixed=False), "does not see padding"),
    ],
)
def test_what_open_clip_cannot_say_is_refused(image: ImageSettings, text: TextSettings, reason: str) -> None:
    assert reason in str(open_clip_out.refusal(publish(_model(image, text))))


def test_one_tower_alone_is_refused() -> None:
    assert "one is missing" in str(open_clip_out.refusal(replace(publish(_model()), text=None)))


def test_a_tokenizer_is_written_only_if_it_is_not_clips(tmp_path: Path) -> None:
    _written(_model(), tmp_path / "a")
    _written(_model(text=BERT), tmp_path / "b")
    assert not (tmp_path / "a" / "tokenizer.json").exists()
    assert (tmp_path / "b" / "tokenizer.json").exists()
    assert isinstance(layout.read(open_checkpoint(tmp_path / "b")).tokenizer, Tokenizer)
