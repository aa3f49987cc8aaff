"""OpenAI's CLIP: its checkpoints give its numbers, and come back so that its own way to build a model reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import build_model_from_openai_state_dict
from torch import Tensor, nn

from open_clip_models import (
    RESNET,
    TEXT,
    VISION,
    assert_each_damage_is_named,
    assert_same,
    build,
    clip_tokens,
    read,
)
from unicl.data.image import Frame
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.published import model_of, publish
from unicl.towers.weights import openai
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import HALF, wanted

ENTRIES = {"input_resolution": 64, "context_length": 12, "vocab_size": 49_408}
TOWERS = {"vit": VISION, "resnet": RESNET}
ORIGINALS = (
    ("RN50-quickgelu", "resnet50_clip", 102_007_137),
    ("RN101-quickgelu", "resnet101_clip", 119_688_033),
    ("RN50x4-quickgelu", "resnet50x4_clip", 178_300_601),
    ("RN50x16-quickgelu", "resnet50x16_clip", 290_979_217),
    ("RN50x64-quickgelu", "resnet50x64_clip", 623_258_305),
    ("ViT-B-32-quickgelu", "vit_base_patch32_clip_quickgelu_224", 151_277_313),
    ("ViT-B-16-quickgelu", "vit_base_patch16_clip_quickgelu_224", 149_620_737),
    ("ViT-L-14-quickgelu", "vit_large_patch14_clip_quickgelu_224", 427_616_513),
    ("ViT-L-14-336-quickgelu", "vit_large_patch14_clip_quickgelu_224", 427_944_193),
)


@pytest.fixture(scope="module", params=TOWERS)
def theirs(request: Any) -> nn.Module:
    return build(TOWERS[request.param], TEXT, quick_gelu=True)


def _saved(state: dict[str, Tensor], file: Path) -> Path:
    torch.save(_with_sizes(state), file)
    return file


def _with_sizes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {name: torch.tensor(size) for name, size in ENTRIES.items()}


def test_a_state_dict_gives_the_numbers_of_its_model_and_goes_back(theirs: nn.Module, tmp_path: Path) -> None:
    published = read(_saved(theirs.state_dict(), tmp_path / "a.pt"))
    assert published.origin == "OpenAI CLIP (state dict)"
    assert_same(model_of(published), theirs, tokens=clip_tokens())

    assert openai.refusal(published) is None
    (file,) = openai.write(published, tmp_path)
    state = torch.load(file, weights_only=True)
    assert {name: int(state[name]) for name in ENTRIES} == ENTRIES
    again = build_model_from_openai_state_dict(dict(state)).float()
    # Its code rounds matrices to half precision, so the weights are given to what it built once more.
    again.load_state_dict({key: value for key, value in state.items() if key not in ENTRIES})
    assert_same(model_of(published), again, tokens=clip_tokens())
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_of_half_precision_is_read(tmp_path: Path) -> None:
    theirs = build(VISION, TEXT, quick_gelu=True)
    pair = torch.zeros(1, 3, 64, 64), torch.zeros(1, 12, dtype=torch.int64)
    archive = torch.jit.trace(theirs, pair, check_trace=False).half()
    archive.save(str(tmp_path / "ViT.pt"))
    rounded = build(VISION, TEXT, quick_gelu=True).half().float()
    published = read(tmp_path / "ViT.pt")
    assert published.origin == "OpenAI CLIP (TorchScript archive)"
    assert_same(model_of(published), rounded, tokens=clip_tokens())


@pytest.mark.parametrize(("name", "model", "count"), ORIGINALS)
def test_published_models_have_their_numbers_of_parameters(name: str, model: str, count: int) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = open_clip.model.CLIP(**config)
    state = theirs.state_dict() | {key: torch.zeros((), device="meta") for key in ENTRIES}
    assert sum(p.numel() for p in theirs.parameters()) == count

    found = openai.read(Checkpoint(place=Path(name), state=state))

    assert found.image is not None
    assert (found.image.name, found.image.size) == (model, config["vision_cfg"]["image_size"])
    assert not found.image.options
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(value.numel() for key, value in found.state.items() if not key.endswith(buffers)) == count


@pytest.mark.slow
def test_one_wrong_entry_is_named() -> None:
    state = build(VISION | {"layers": 1}, TEXT | {"layers": 1}, quick_gelu=True).state_dict()
    assert_each_damage_is_named(_with_sizes(state), keys=tuple(state))


@pytest.mark.slow
def test_one_wrong_entry_of_a_resnet_is_named() -> None:
    state = build(RESNET, TEXT, quick_gelu=True).state_dict()
    keys = [
        "visual.conv1.weight",
        "visual.layer1.0.downsample.1.weight",
        "visual.attnpool.positional_embedding",
    ]
    assert_each_damage_is_named(_with_sizes(state), keys=keys)


def test_a_resnet_of_no_published_size_says_so(tmp_path: Path) -> None:
    theirs = build({"layers": (1, 1, 1, 1), "width": 16, "image_size": 64}, TEXT, quick_gelu=True)
    with pytest.raises(UserError, match=r"ResNet of \(1, 1, 1, 1\) blocks and width 16.*resnet50_clip"):
        read(_saved(theirs.state_dict(), tmp_path / "a.pt"))


def test_a_state_dict_without_the_three_sizes_is_not_taken_for_openais(tmp_path: Path) -> None:
    state = build(VISION, TEXT).state_dict()
    torch.save(state, tmp_path / "a.pt")
    assert not openai.recognises(open_checkpoint(tmp_path / "a.pt"))
    assert openai.recognises(open_checkpoint(_saved(state, tmp_path / "b.pt")))


def test_what_its_code_would_build_otherwise_is_refused(tmp_path: Path) -> None:
    found = read(_saved(build(VISION, TEXT, quick_gelu=True).state_dict(), tmp_path / "a.pt"))
    assert found.image is not None
    assert found.text is not None
    trained = train_tokenizer(["a red dog"], vocab_size=400, context=12)
    cases = {
        "bias of the scores": replace(found, state={**found.state, "bias": torch.tensor(1.0)}),
        "preprocessing": replace(found, mean=HALF),
        "keeps no preprocessing": replace(found, image=replace(found.image, frame=Frame(mode="squash"))),
        "not 'train'": replace(found, tokenizer=trained),
        "one is missing": replace(found, text=None),
        "linear head, not": replace(found, image=replace(found.image, head="affine")),
        "another image tower": replace(found, image=replace(found.image, name="vit_base_patch16_clip_224")),
        "another text tower": replace(found, text=replace(found.text, options={"hidden_act": "gelu"})),
        "pools 'mean'": replace(found, text=replace(found.text, pool="mean")),
    }
    for reason, model in cases.items():
        assert reason in str(openai.refusal(model)), reason


def test_a_model_of_ours_goes_out_as_openais(tmp_path: Path) -> None:
    ours = model_of(read(_saved(build(VISION, TEXT, quick_gelu=True).state_dict(), tmp_path / "a.pt")))
    published = publish(ours)
    assert openai.refusal(published) is None
    shapes = wanted(image=published.image, text=published.text, width=24, vocab_size=49_408, eos_id=49_407)
    assert shapes.keys() == published.state.keys()
    openai.write(published, tmp_path)
    again = model_of(read(tmp_path / openai.FILE))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
