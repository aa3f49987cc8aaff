"""transformers' SiglipModel: read and written with equal features, by its own code on both sides."""

from dataclasses import replace

import pytest
import torch

from checkpoint_cases import wrong_by_one
from transformers_cases import CONTEXT, SIDE, largest, loaded, ours, pictures, save_clip, save_siglip, theirs
from unicl.errors import UserError
from unicl.published import model_of, publish
from unicl.towers.weights import transformers_siglip as layout
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import wanted


def test_features_scale_and_bias_are_equal_on_the_way_in_and_out(tmp_path):
    original = save_siglip(tmp_path / "a")
    _, processor = loaded(tmp_path / "a")
    found = layout.read(open_checkpoint(tmp_path / "a"))
    model = model_of(found)
    expected = theirs(original, processor, pictures(), padding="max_length")
    assert max(largest(ours(model, pictures()), expected)) < 1e-5
    assert found.scale == pytest.approx(float(original.logit_scale.detach().exp()))
    assert found.bias == pytest.approx(float(original.logit_bias.detach()))
    assert float((expected[1][0] - expected[1][1]).abs().max()) > 1e-2

    (tmp_path / "b").mkdir()
    out = publish(model)
    assert layout.refusal(out) is None
    layout.write(out, tmp_path / "b")
    back, words = loaded(tmp_path / "b")
    assert type(back) is type(original)
    assert max(largest(theirs(back, words, pictures(), padding="max_length"), expected)) < 1e-5
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in original.state_dict().items())


def test_pictures_of_any_shape_are_squashed_as_its_processor_does(tmp_path):
    original = save_siglip(tmp_path)
    _, processor = loaded(tmp_path)
    found = layout.read(open_checkpoint(tmp_path))
    assert found.image.frame.mode == "squash"
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    shapes = pictures(sizes=((90, 50), (41, 77)))
    expected = theirs(original, processor, shapes, ["a", "cat"], padding="max_length")
    # Scaling rounds to a grey level, in another order than transformers'.
    assert largest(ours(model_of(found), shapes, ["a", "cat"]), expected)[0] < 5e-3


def test_texts_are_always_whole_and_their_padding_is_read(tmp_path):
    save_siglip(tmp_path)
    model = model_of(layout.read(open_checkpoint(tmp_path)))
    tokens, mask = model.tokenizer(["a cat"])
    assert tokens.shape == (1, CONTEXT)
    assert bool(mask.all())


def test_every_entry_is_accounted_for(tmp_path):
    save_siglip(tmp_path, vision={"num_hidden_layers": 1})
    found = open_checkpoint(tmp_path)
    tried, wrong = wrong_by_one(found, layout.read, spared=r"text_model\.encoder\..*")
    assert tried > 22
    assert wrong == []


def test_odd_sizes_and_activations_are_read_whole(tmp_path):
    vision = {"intermediate_size": 121, "hidden_act": "gelu", "layer_norm_eps": 1e-4}
    original = save_siglip(tmp_path, vision=vision)
    _, processor = loaded(tmp_path)
    model = model_of(layout.read(open_checkpoint(tmp_path)))
    expected = theirs(original, processor, pictures(), padding="max_length")
    assert max(largest(ours(model, pictures()), expected)) < 1e-5


@pytest.mark.parametrize(
    ("vision", "text", "count"),
    [
        # google/siglip-base-patch16-224
        ({}, {}, 203_155_970),
        # google/siglip2-base-patch16-256: the same class with Gemma's vocabulary
        ({"image_size": 256}, {"vocab_size": 256_000}, 375_234_050),
        # google/siglip-so400m-patch14-384
        (
            {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
            | {"patch_size": 14, "image_size": 384},
            {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
            877_960_498,
        ),
    ],
)
def test_published_sizes_have_exactly_their_parameters(tmp_path, vision, text, count):
    from transformers import SiglipConfig, SiglipModel

    save_siglip(tmp_path)  # for the files of its tokenizer
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    config = SiglipConfig(vision_config=vision, text_config=text)
    with torch.device("meta"):
        original = SiglipModel(config)
    state = original.state_dict()
    found = layout.read(Checkpoint(place=tmp_path, state=state, config=config.to_dict(), folder=tmp_path))
    shapes = wanted(image=found.image, text=found.text, width=found.width, vocab_size=found.vocab_size, bias=True)
    assert sum(value.numel() for value in shapes.values()) == count
    assert sum(value.numel() for value in original.parameters()) == count
    assert found.image.frame.mode == "squash"
    assert any("no preprocessor_config.json" in note for note in found.notes)


def test_a_model_for_pictures_of_any_shape_is_refused_with_the_reason(tmp_path):
    from transformers import Siglip2Config, Siglip2Model

    config = Siglip2Config(
        vision_config={"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2},
        text_config={"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
        | {"vocab_size": 64, "projection_size": 32},
    )
    Siglip2Model(config).save_pretrained(tmp_path)
    found = open_checkpoint(tmp_path)
    assert layout.recognises(found)
    with pytest.raises(UserError, match="NaFlex"):
        layout.read(found)


def test_an_image_tower_without_its_head_is_refused(tmp_path):
    save_siglip(tmp_path, vision={"vision_use_head": False})
    with pytest.raises(UserError, match="without its head"):
        layout.read(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": {"name": "test_vit"}}, "'test_vit'"),
        ({"image": {"head": "linear"}}, "'linear'"),
        ({"text": {"head": "linear"}}, "'linear'"),
        ({"text": {"fixed": False}}, "padding"),
        ({"text": {"pool": "mean"}}, "'mean'"),
    ],
)
def test_what_the_layout_cannot_express_is_said_before(tmp_path, change, said):
    save_siglip(tmp_path)
    model = layout.read(open_checkpoint(tmp_path))
    for part, fields in change.items():
        model = replace(model, **{part: replace(getattr(model, part), **fields)})
    assert said in layout.refusal(model)


def test_a_model_without_a_bias_is_no_siglip(tmp_path):
    save_siglip(tmp_path / "a")
    model = layout.read(open_checkpoint(tmp_path / "a"))
    state = {key: value for key, value in model.state.items() if key != "bias"}
    assert "no bias" in layout.refusal(replace(model, state=state))
    save_clip(tmp_path / "b")
    assert not layout.recognises(open_checkpoint(tmp_path / "b"))


def test_the_sentencepiece_files_of_the_first_siglip_give_the_same_features(tmp_path):
    from transformers import SiglipImageProcessor, SiglipProcessor, SiglipTokenizer

    original = save_siglip(tmp_path, vocab=64)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    words = SiglipTokenizer(str(pieces(tmp_path)), model_max_length=CONTEXT, model_input_names=["input_ids"])
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    SiglipProcessor(images, words).save_pretrained(tmp_path)
    _, processor = loaded(tmp_path)
    model = model_of(layout.read(open_checkpoint(tmp_path)))
    texts = ["A cat, on the MAT!", "the dog's\tmat", "cat dog " * 20]
    expected = theirs(original, processor, pictures(), texts, padding="max_length")
    assert max(largest(ours(model, pictures(), texts), expected)) < 1e-5


def pieces(folder):
    """A sentencepiece model whose padding, like SigLIP's, is its end mark."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat on the mat", "the dog and the cat", "dogs and cats on mats"] * 9),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        pad_id=0,
        minloglevel=9,
    )
    return folder / "spiece.model"
