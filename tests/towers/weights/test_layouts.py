"""Which layout a checkpoint is in."""

import json
from pathlib import Path

import pytest
import timm
import torch

from chinese_cases import official, official_file, save_align
from open_clip_models import build, config_of
from original_towers import Unicl
from transformers_cases import bert_tokenizer, save_clip, save_dual, save_siglip
from unicl.errors import UserError
from unicl.towers.weights import layouts, openai
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint


def test_a_state_dict_of_something_else_lists_what_is_known() -> None:
    found = Checkpoint(place=Path("other.pt"), state={"some.weight": torch.zeros(2)})
    assert layouts.find(found) is None
    with pytest.raises(UserError, match=r"other\.pt is in no layout that is known \(some\.weight.*openai.*open_clip"):
        layouts.read(found)


def test_every_layout_has_a_name_of_its_own() -> None:
    names = [layout.NAME for layout in layouts.LAYOUTS]
    assert len(set(names)) == len(names)
    assert (*layouts.PAIRS, *layouts.SINGLES) == layouts.LAYOUTS


def test_the_first_that_claims_a_checkpoint_is_taken() -> None:
    state = {
        name: torch.zeros(2)
        for name in (
            "visual.conv1.weight",
            "transformer.resblocks.0.ln_1.weight",
            "input_resolution",
            "context_length",
            "vocab_size",
        )
    }
    found = Checkpoint(place=Path("clip.pt"), state=state)
    assert layouts.find(found) is openai
    assert layouts.find(found, among=layouts.SINGLES) is None


VISION = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 32}
WORDS = {"context_length": 12, "vocab_size": 49_408, "width": 64, "heads": 1, "layers": 1}


def test_each_projects_files_are_taken_for_its_own(tmp_path: Path) -> None:
    save_clip(tmp_path / "transformers_clip")
    save_siglip(tmp_path / "transformers_siglip")
    save_align(tmp_path / "transformers_align")
    words = bert_tokenizer()
    save_dual(tmp_path / "transformers_dual", vision={"model_type": "vit"}, text={"model_type": "bert"}, words=words)
    (tmp_path / "open_clip").mkdir()
    theirs = build(VISION, WORDS)
    torch.save(theirs.state_dict(), tmp_path / "open_clip" / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip" / "open_clip_config.json").write_text(json.dumps(config_of(VISION, WORDS)))
    sizes = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    for name, state in (("open_clip.pt", theirs.state_dict()), ("openai.pt", theirs.state_dict() | sizes)):
        torch.save(state, tmp_path / name)
    official_file(official(), tmp_path / "cn_clip.pt")
    unicl = Unicl(image="visual", text="text", projection="vision_projection", width=24, classes=0)
    torch.save({"model": unicl.state_dict()}, tmp_path / "microsoft_unicl.pth")
    timm_model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    torch.save(timm_model.state_dict(), tmp_path / "image_only.pt")
    for place in sorted(tmp_path.iterdir()):
        found = layouts.find(open_checkpoint(place))
        assert found is not None, place.name
        assert found.__name__.rpartition(".")[2] == place.name.partition(".")[0]
