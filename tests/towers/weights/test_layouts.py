"""Which layout a checkpoint is in."""

from pathlib import Path

import pytest
import torch

from unicl.errors import UserError
from unicl.towers.weights import layouts, openai
from unicl.towers.weights.checkpoint import Checkpoint


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
