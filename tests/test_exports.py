"""Models out: from a folder to another project's files, and what is refused before anything is written."""

import pytest
import torch

from tiny import tiny
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.exports import between, export, inspected
from unicl.published import load
from unicl.run import build_model

TOKENIZER = train_tokenizer(["a red square", "a blue one"], vocab_size=300, context=77)


@pytest.fixture
def model(tmp_path):
    """A nested model in its folder."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    build_model(tiny("itl"), (), tokenizer=TOKENIZER).save(folder)
    return str(folder)


def test_plain_safetensors_hold_the_model_and_its_card(model, tmp_path):
    said = []
    export(model, tmp_path / "out", to="safetensors", asked={}, say=said.append)
    assert "model.safetensors" in said[0]
    assert "README.md" in said[0]
    texts = ["a red square", "one"]
    assert torch.equal(load(tmp_path / "out").embed_text(texts), load(model).embed_text(texts))


def test_both_views_are_two_folders_of_their_own_width(model, tmp_path):
    export(model, tmp_path / "out", to="safetensors", view="both", asked={}, say=lambda _: None)
    assert load(tmp_path / "out" / "instances").settings.width == 32
    assert load(tmp_path / "out" / "classes").settings.width == 16


def test_what_belongs_to_graphs_and_what_cannot_be_expressed_is_said_first(model, tmp_path):
    with pytest.raises(UserError, match="dtype, data: these are of graphs, not of openai"):
        export(model, tmp_path / "out", to="openai", asked={"dtype": "int8"}, data=["x"], say=lambda _: None)
    with pytest.raises(UserError, match="cannot be written as cn_clip, and nothing is"):
        export(model, tmp_path / "out", to="cn_clip", asked={}, say=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_a_model_is_told_with_where_it_lies(model):
    found = inspected(model)
    assert found.origin == f"a model of unicl: {model}"
    assert dict(found.views) == {"instances": 32, "classes": 16}


def test_the_model_between_a_model_and_itself_is_itself(model, tmp_path):
    between(model, model, tmp_path / "out", alpha=0.3)
    texts = ["a red square"]
    assert torch.allclose(load(tmp_path / "out").embed_text(texts), load(model).embed_text(texts), atol=1e-6)
    with pytest.raises(UserError, match="not an empty folder"):
        between(model, model, tmp_path / "out", alpha=0.3)
