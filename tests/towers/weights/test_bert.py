import pytest
import torch
from transformers import BertConfig, BertModel

from unicl.errors import UserError
from unicl.towers.weights import bert
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.published import Published, assembled


def found(width=128, **sizes):
    options = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "vocab_size": 30} | sizes
    with torch.device("meta"):
        model = BertModel(BertConfig(hidden_size=width, max_position_embeddings=40, **options))
    return Checkpoint(place="a file", state={f"text.{key}": value for key, value in model.state_dict().items()})


def test_the_sizes_are_read_from_the_shapes_and_every_tensor_is_accounted_for():
    checkpoint = found()
    settings = bert.settings(checkpoint, root="text.", head="none", pool="mean", context=77)
    assert (settings.layers, settings.dim, settings.heads, settings.context) == (2, 128, 2, 40)
    model = Published(origin="BERT", image=None, text=settings, width=128, state={}, vocab_size=30)
    read = assembled(checkpoint.state, model, rules=bert.rules("text."), unused=bert.unused("text."), scale=False)
    assert len(read.state) == len(checkpoint.state) - 2
    assert any("pooler" in note for note in read.notes)


def test_a_width_that_makes_no_heads_is_refused():
    with pytest.raises(UserError, match=r"text\.embeddings\.position_embeddings\.weight is \(40, 100\)"):
        bert.settings(found(width=100), root="text.", head="none", pool="cls", context=16)


def test_the_clinical_bert_of_medclip_and_gloria_has_its_published_count():
    with torch.device("meta"):
        model = BertModel(BertConfig(vocab_size=28_996), add_pooling_layer=False)
    checkpoint = Checkpoint(place="a file", state=model.state_dict())
    settings = bert.settings(checkpoint, root="", head="none", pool="mean", context=97)
    read = assembled(
        checkpoint.state,
        Published(origin="BERT", image=None, text=settings, width=768, state={}, vocab_size=28_996),
        rules=bert.rules(""),
        scale=False,
    )
    # 108,310,272 with the pooler (BERT base, cased), less that.
    assert sum(value.numel() for value in read.state.values()) == 107_719_680
