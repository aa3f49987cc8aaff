import numpy as np
import pytest
import sentencepiece
import timm
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, SiglipTextConfig, SiglipTextModel

from checkpoint_cases import wrong_by_one
from flax_names import bert_arrays, image_arrays, scanned, text_arrays
from original_towers import shake
from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights import lit
from unicl.towers.weights.checkpoint import open_checkpoint
from unicl.towers.weights.published import wanted

WORDS = [
    "a",
    "red",
    "fruit",
    "on",
    "the",
    "table",
    "green",
    "apple",
    "dog",
    "cat",
    "house",
    "river",
    "mountain",
    "blue",
    "small",
    "big",
    "two",
    "three",
]
TEXTS = ["a red fruit", "dog", "two small cats on the big blue mountain " * 8]
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "act_layer": "gelu_tanh"}
POOLS = {
    "token": {},
    "tok": {"no_embed_class": True},
    "gap": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "map": {"class_token": False, "global_pool": "map"},
}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    generator = np.random.default_rng(0)
    lines = [" ".join(generator.choice(WORDS, 6)) for _ in range(300)]
    (folder / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "pieces"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "pieces.model"


def image_model(pool="token"):
    return shake(timm.create_model("vit_base_patch16_224", num_classes=0, **SIZES, **POOLS[pool]))


def text_model(width=32):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipTextConfig(vocab_size=40, max_position_embeddings=16, projection_size=width, **sizes)
    return shake(SiglipTextModel(config), seed=1)


def bert_model():
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=24,
        hidden_act="gelu_pytorch_tanh",
    )
    return shake(BertModel(config, add_pooling_layer=False), seed=2)


def head_arrays(side, *, features, width):
    generator = np.random.default_rng(3)
    kernel = generator.normal(size=(features, width)).astype(np.float32) / 8
    return {f"{side}/head/kernel": kernel, f"{side}/head/bias": kernel[0].copy()}


def saved(folder, arrays, tokenizer, suffix=".model"):
    file = folder / "LiT.npz"
    np.savez(file, **arrays, t=np.array([2.3], dtype=np.float32))
    file.with_suffix(suffix).write_bytes(tokenizer)
    return file


def through_head(features, arrays, side):
    kernel, bias = (torch.from_numpy(arrays[f"{side}/head/{kind}"]) for kind in ("kernel", "bias"))
    return F.normalize(features @ kernel + bias, dim=-1)


def pixels():
    return torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("pool", "numbers"),
    [(pool, (0, 1, 0)) for pool in POOLS] + [("token", (1, 2, 3)), ("gap", (1, 2, 3))],
    ids=[*(f"big_vision {pool}" for pool in POOLS), "vision_transformer token", "vision_transformer gap"],
)
def test_image_features_are_those_of_timms_model_and_of_timms_own_reader(pool, numbers, pieces, tmp_path):
    theirs = image_model(pool)
    arrays = image_arrays(theirs, root="img/", numbers=numbers) | text_arrays(text_model(), root="txt/")
    file = saved(tmp_path, arrays, pieces.read_bytes())
    again = timm.create_model("vit_base_patch16_224", num_classes=0, **SIZES, **POOLS[pool])
    again.load_pretrained(str(file), prefix="img/")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in theirs.state_dict().items())
    ours = model_of(lit.read(open_checkpoint(file)))
    with torch.no_grad():
        expected = F.normalize(theirs(pixels() / 127.5 - 1), dim=-1)
        assert torch.allclose(ours.image(pixels()).whole, expected, atol=1e-5)


def test_both_towers_have_the_heads_that_are_in_the_file(pieces, tmp_path):
    image, text = image_model(), text_model(width=24)
    arrays = image_arrays(image, root="img/") | text_arrays(text, root="txt/")
    arrays |= head_arrays("img", features=32, width=24)
    ours = model_of(lit.read(open_checkpoint(saved(tmp_path, arrays, pieces.read_bytes()))))
    assert (ours.settings.image.head, ours.settings.text.head, ours.settings.width) == ("affine", "affine", 24)
    with torch.no_grad():
        expected = through_head(image(pixels() / 127.5 - 1), arrays, "img")
        assert torch.allclose(ours.image(pixels()).whole, expected, atol=1e-5)


def test_texts_are_pieces_and_end_marks_up_to_sixteen_as_transformers_reads_them(pieces, tmp_path):
    text = text_model()
    arrays = image_arrays(image_model(), root="img/") | text_arrays(text, root="txt/")
    ours = model_of(lit.read(open_checkpoint(saved(tmp_path, arrays, pieces.read_bytes()))))
    processor = sentencepiece.SentencePieceProcessor(str(pieces))
    rows = [(processor.encode(each)[:15] + [1] * 16)[:16] for each in TEXTS]
    tokens, mask = ours.tokenizer(TEXTS)
    assert tokens.tolist() == rows
    assert bool(mask.all())
    with torch.no_grad():
        expected = F.normalize(text(torch.tensor(rows)).pooler_output, dim=-1)
    assert torch.allclose(ours.embed_text(TEXTS), expected, atol=1e-5)


def test_bert_reads_a_class_mark_and_pieces_without_an_end_mark(tmp_path):
    bert = bert_model()
    arrays = image_arrays(image_model(), root="img/") | bert_arrays(bert, root="txt/")
    arrays |= head_arrays("txt", features=64, width=32)
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]) + "\n"
    ours = model_of(lit.read(open_checkpoint(saved(tmp_path, arrays, vocabulary.encode(), ".txt"))))
    ids = {word: place + 4 for place, word in enumerate(WORDS)}
    rows = [([2] + [ids.get(word, 1) for word in text.split()] + [0] * 16)[:16] for text in TEXTS]
    tokens = torch.tensor(rows)
    with torch.no_grad():
        states = bert(input_ids=tokens, attention_mask=tokens != 0).last_hidden_state
    assert torch.allclose(ours.embed_text(TEXTS), through_head(states[:, 0], arrays, "txt"), atol=1e-5)


def test_scanned_blocks_and_a_bias_are_read_as_big_vision_saves_siglip(pieces, tmp_path):
    image = image_model("map")
    plain = image_arrays(image, root="params/img/") | text_arrays(text_model(), root="params/txt/")
    stacked = scanned({k: v for k, v in plain.items() if "/img/" in k})
    stacked |= scanned({k: v for k, v in plain.items() if "/txt/" in k})
    assert len(stacked) < len(plain)
    scalars = {"params/t": np.array([2.0], dtype=np.float32), "params/b": np.array([-9.0], dtype=np.float32)}
    file = tmp_path / "SigLIP.npz"
    np.savez(file, **stacked, **scalars)
    file.with_suffix(".model").write_bytes(pieces.read_bytes())
    published = lit.read(open_checkpoint(file))
    assert published.bias == -9.0
    assert published.scale == pytest.approx(np.exp(2.0))
    with torch.no_grad():
        expected = F.normalize(image(pixels() / 127.5 - 1), dim=-1)
        assert torch.allclose(model_of(published).image(pixels()).whole, expected, atol=1e-5)


def test_positions_that_an_old_file_holds_twice_are_added(pieces, tmp_path):
    arrays = image_arrays(image_model(), root="img/") | text_arrays(text_model(), root="txt/")
    half = arrays["txt/pos_embedding"] / 2
    twice = arrays | {"txt/pos_embedding": half, "txt/Encoder_0/pos_embedding": half}
    published = lit.read(open_checkpoint(saved(tmp_path, twice, pieces.read_bytes())))
    place = next(key for key in published.state if key.endswith("position_embedding.weight"))
    assert torch.equal(published.state[place], torch.from_numpy(arrays["txt/pos_embedding"][0]))
    assert any("twice" in note or "both" in note for note in published.notes)


def test_what_travels_with_the_weights_is_lits(pieces, tmp_path):
    arrays = image_arrays(image_model(), root="img/") | text_arrays(text_model(), root="txt/")
    found = open_checkpoint(saved(tmp_path, arrays, pieces.read_bytes()))
    published = lit.read(found)
    assert lit.recognises(found)
    assert published.image.frame == Frame(mode="squash", interpolation="bilinear")
    assert (published.mean, published.std) == ((0.5,) * 3, (0.5,) * 3)
    assert published.scale == pytest.approx(np.exp(2.3))
    assert (published.text.context, published.text.fixed, published.pad_id) == (16, True, 1)


def test_a_file_without_its_tokenizer_says_what_to_give(tmp_path):
    arrays = image_arrays(image_model(), root="img/") | text_arrays(text_model(), root="txt/")
    file = tmp_path / "alone.npz"
    np.savez(file, **arrays, t=np.zeros(1, dtype=np.float32))
    with pytest.raises(UserError, match=r"SentencePiece model \(.model\) of 40 entries"):
        lit.read(open_checkpoint(file))


@pytest.mark.parametrize("kind", [pytest.param("siglip", marks=pytest.mark.slow), "bert"])
def test_one_renamed_missing_or_reshaped_entry_is_named(kind, pieces, tmp_path):
    image = image_arrays(image_model("map" if kind == "siglip" else "token"), root="img/")
    if kind == "bert":
        text = bert_arrays(bert_model(), root="txt/") | head_arrays("txt", features=64, width=32)
        file = saved(tmp_path, image | text, "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]).encode(), ".txt")
    else:
        file = saved(tmp_path, image | text_arrays(text_model(), root="txt/"), pieces.read_bytes())
    tried, wrong = wrong_by_one(open_checkpoint(file), lit.read, alike=r"(?<=block_)\d+|(?<=layers_)\d+")
    assert tried > 27
    assert not wrong, wrong


def test_the_published_sizes_have_the_published_counts():
    # README_lit.md of vision_transformer: 196M and 638M. B16B has a head on its images, B16B_2 and L16L have none.
    base = ("vit_base_patch16_224", 12, 768, 12)
    large = ("vit_large_patch16_224", 24, 1024, 16)
    sizes = {"B16B": (*base, "affine"), "B16B_2": (*base, "none"), "L16L": (*large, "none")}
    counts = {}
    for model, (name, layers, dim, heads, head) in sizes.items():
        options = {"max_position_embeddings": 512, "type_vocab_size": 2, "intermediate_size": 4 * dim}
        text = TextSettings(
            name="bert", layers=layers, dim=dim, heads=heads, context=16, head="affine", options=options
        )
        shapes = wanted(image=ImageSettings(name=name, head=head), text=text, width=dim, vocab_size=30_522)
        counts[model] = sum(value.numel() for value in shapes.values())
    assert counts == {"B16B": 195_871_489, "B16B_2": 195_280_897, "L16L": 638_443_521}
