"""What the layouts of transformers' dual models share."""

import re
from pathlib import Path

import pytest
import torch

from unicl.errors import UserError
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.published import Published
from unicl.towers.weights.transformers_parts import COUNTERS, bias_refusal, nested, read_settings


def found(*names, config=None):
    return Checkpoint(place=Path("somewhere"), state={name: torch.zeros(1) for name in names}, config=config or {})


def test_a_part_of_a_configuration_is_read_with_the_defaults_of_its_class():
    content = {"vision_config": {"hidden_size": 48}}
    config = read_settings(found(config=content), "CLIPVisionConfig", part="vision_config")
    assert (config.hidden_size, config.patch_size) == (48, 32)


def test_a_missing_and_a_broken_configuration_are_named():
    with pytest.raises(UserError, match=r"no config\.json"):
        read_settings(found(), "CLIPConfig")
    with pytest.raises(UserError, match="is no CLIPVisionConfig"):
        read_settings(found(config={"vision_config": {"hidden_size": "x"}}), "CLIPVisionConfig", part="vision_config")


def test_towers_that_lie_one_level_deeper_are_found():
    assert nested(found("text_model.embeddings.weight"), "text_model") == "text_model"
    assert nested(found("text_model.text_model.embeddings.weight"), "text_model") == "text_model.text_model"


@pytest.mark.parametrize("name", ["text_model.embeddings.position_ids", "a.token_type_ids"])
def test_counters_are_explained_and_nothing_like_them(name):
    assert re.fullmatch(COUNTERS.theirs, name)
    assert not re.fullmatch(COUNTERS.theirs, name.removesuffix("s"))
    assert not re.fullmatch(COUNTERS.theirs, "text_model.embeddings.position_embedding.weight")


def test_scores_need_a_scale_and_no_bias():
    model = Published(origin="made", image=None, text=None, width=8, state={"log_scale": torch.zeros(())})
    assert bias_refusal(model) is None
    with_bias = Published(origin="made", image=None, text=None, width=8, state={**model.state, "bias": torch.zeros(())})
    assert "bias" in bias_refusal(with_bias)
    assert "no scale" in bias_refusal(Published(origin="made", image=None, text=None, width=8, state={}))
