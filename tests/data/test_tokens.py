"""Vocabularies of others: ids equal to their own code on strange texts, from packages, folders and single files."""

import json
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import torch
from cn_clip.clip.bert_tokenizer import FullTokenizer
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from transformers import AutoTokenizer, BertTokenizer, CLIPTokenizer, SiglipTokenizer, T5Tokenizer

from strange_texts import strange_texts
from unicl.data.clean import prepare
from unicl.data.text import load_tokenizer, padded_with_end, without_end
from unicl.errors import UserError
from unicl.towers.weights.transformers_files import write_tokenizer

WHOLE = [text for text in strange_texts() if not any(0xD800 <= ord(letter) < 0xE000 for letter in text)]
"""transformers reads no lone surrogates."""


def ids(tokenizer, texts):
    """Uncut."""
    return [encoding.ids for encoding in tokenizer.inner.encode_batch([prepare(t, tokenizer.cleaning) for t in texts])]


def differ(texts, ours, theirs):
    return [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


@pytest.fixture(scope="module")
def clip():
    return load_tokenizer("clip", context=77)


@pytest.fixture(scope="module")
def chinese():
    return load_tokenizer("chinese", context=52)


@pytest.fixture(scope="module")
def clip_folder(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder, tokenizer=clip, kind="clip")
    return folder


@pytest.fixture(scope="module")
def bert_folder(chinese, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_tokenizer(folder, tokenizer=chinese, kind="bert")
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Tiny SentencePiece models with T5's ids: padding 0, end 1, unknown 2."""
    folder = tmp_path_factory.mktemp("pieces")
    lines = "\n".join(" ".join(text.split()) for text in WHOLE[:1500] if "\x00" not in text)
    (folder / "texts.txt").write_text(lines, encoding="utf-8")
    for kind in ("unigram", "bpe"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "texts.txt"),
            model_prefix=str(folder / kind),
            model_type=kind,
            vocab_size=1500,
            hard_vocab_limit=False,
            character_coverage=0.98,
            minloglevel=2,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
        )
    return folder


def test_ten_thousand_texts_have_openais_ids(clip):
    texts = strange_texts()
    tokens, mask = clip(texts)
    wanted = SimpleTokenizer()(texts)
    assert len(texts) == 10_000
    assert differ(texts, tokens.tolist(), wanted[:, : tokens.shape[1]].tolist()) == []
    assert not wanted[:, tokens.shape[1] :].any()
    assert torch.equal(mask.sum(1), wanted.argmax(1) + 1)


def test_ten_thousand_texts_have_chinese_clips_ids(chinese):
    texts, theirs = strange_texts(), FullTokenizer()
    wanted = [[101, *theirs.convert_tokens_to_ids(theirs.tokenize(text)), 102] for text in texts]
    assert differ(texts, ids(chinese, texts), wanted) == []


def test_a_clip_folder_has_the_ids_of_transformers(clip_folder):
    theirs = AutoTokenizer.from_pretrained(clip_folder)
    assert isinstance(theirs, CLIPTokenizer)
    ours = load_tokenizer(str(clip_folder), context=77)
    assert differ(WHOLE, ids(ours, WHOLE), theirs(WHOLE)["input_ids"]) == []
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)


@pytest.mark.slow
def test_clips_ids_are_those_of_transformers_for_texts_that_are_clean(clip, clip_folder):
    """It neither mends nor lowers a Greek final sigma as OpenAI does, and U+0345 is no letter to it."""
    theirs = AutoTokenizer.from_pretrained(clip_folder)
    texts = [text for text in WHOLE if "\u0345" not in prepare(text, "lower")]
    cleaned = [prepare(text, "lower") for text in texts]
    assert len(texts) > 8_000
    assert differ(texts, ids(clip, texts), theirs(cleaned)["input_ids"]) == []


@pytest.mark.parametrize("files", [("vocab.txt",), ("vocab.txt", "tokenizer_config.json"), ("tokenizer.json",)])
def test_a_bert_folder_has_the_ids_of_transformers_whatever_files_it_has(files, bert_folder, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes((bert_folder / name).read_bytes())
    theirs = BertTokenizer.from_pretrained(tmp_path)
    texts = WHOLE if "vocab.txt" in files else [text for text in WHOLE if "[" not in text]
    ours = load_tokenizer(str(tmp_path), context=52)
    assert differ(texts, ids(ours, texts), theirs(texts)["input_ids"]) == []
    assert (ours.eos_id, ours.pad_id, ours.vocab_size) == (102, 0, 21_128)


def test_a_cased_vocabulary_keeps_its_case(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nDog\ndog\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    ours = load_tokenizer(str(tmp_path), context=8)
    assert ours(["Dog dog"])[0].tolist() == [AutoTokenizer.from_pretrained(tmp_path)("Dog dog")["input_ids"]]
    assert ours(["Dog dog"])[0].tolist() == [[2, 5, 6, 3]]


def plain(text):
    """No marks of the model, and nothing that `tokenizers` normalises or ties that it breaks in its own way."""
    marks = any(mark in text for mark in ("</s>", "<pad>", "▁", "\x00", "ab" * 40))
    return not marks and unicodedata.normalize("NFKC", text) == text and not any(map(unicodedata.combining, text))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_sentencepiece_model_has_the_ids_of_sentencepiece_and_an_end_mark(kind, pieces):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(pieces / f"{kind}.model"))
    ours = load_tokenizer(str(pieces / f"{kind}.model"), context=64)
    texts = [text for text in WHOLE if plain(text)]
    assert len(texts) > 1_500
    assert differ(texts, ids(ours, texts), [[*row, 1] for row in theirs.encode(texts)]) == []
    assert (ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 0, theirs.get_piece_size())
    all_texts = [text for text in WHOLE if not any(mark in text for mark in ("</s>", "<pad>", "▁", "\x00"))]
    wrong = differ(all_texts, ids(ours, all_texts), [[*row, 1] for row in theirs.encode(all_texts)])
    assert len(wrong) / len(all_texts) < 0.1


def test_t5s_own_tokenizer_agrees(pieces, tmp_path):
    (tmp_path / "spiece.model").write_bytes((pieces / "unigram.model").read_bytes())
    ours = load_tokenizer(str(tmp_path), context=64)
    texts = [text for text in WHOLE if plain(text) and "\x85" not in text]
    theirs = T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    assert differ(texts, ids(ours, texts), theirs(texts)["input_ids"]) == []


def test_siglips_own_tokenizer_agrees_with_its_cleaning_and_its_padding(pieces, tmp_path):
    theirs = SiglipTokenizer(str(pieces / "unigram.model"))
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(str(tmp_path), context=16, fixed=True)
    texts = ["A Red, red apple!", "two dogs_run", "", "x " * 40, *(text for text in WHOLE if plain(text))][:2000]
    theirs = theirs(texts, padding="max_length", truncation=True, max_length=16)["input_ids"]
    tokens, mask = ours(texts)
    wrong = differ(texts, tokens.tolist(), theirs)
    # An empty text is "▁" to it, and so is the start of one whose first word was punctuation.
    assert all(row[0] == load(pieces).piece_to_id("▁") for row in (theirs[texts.index(text)] for text in wrong))
    assert len(wrong) < 60
    assert (ours.eos_id, ours.pad_id, ours.cleaning) == (1, 1, "bare")
    assert mask.all()


def load(pieces):
    return sentencepiece.SentencePieceProcessor(model_file=str(pieces / "unigram.model"))


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_open_clips_folder_says_how_its_texts_are_cleaned(clean, clip_folder, tmp_path):
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = {"hf_tokenizer_name": "any", "tokenizer_kwargs": {"clean": clean}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    ours = load_tokenizer(str(tmp_path), context=77)
    texts = list(strange_texts(2000))
    tokens, _ = ours(texts)
    wanted = HFTokenizer(str(tmp_path), context_length=77, clean=clean)(texts)
    assert differ(texts, tokens.tolist(), wanted[:, : tokens.shape[1]].tolist()) == []


def test_the_padding_of_a_folder_is_the_one_its_configuration_names(clip_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((clip_folder / "tokenizer.json").read_bytes())
    for named in ("!", {"content": "!"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": named}))
        assert load_tokenizer(str(tmp_path), context=77).pad_id == 0
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_tokenizer(str(tmp_path), context=77)


def test_lits_bert_has_no_end_mark_and_is_cut_at_a_word(chinese):
    ours = without_end(chinese)
    assert ours(["苹果", "苹"])[0].tolist() == [chinese(["苹果"])[0][0, :3].tolist(), [*chinese(["苹"])[0][0, :2], 0]]
    short = without_end(load_tokenizer("chinese", context=4))
    tokens, mask = short(["一二三四五六"])
    assert tokens.tolist() == [chinese(["一二三四五六"])[0][0, :4].tolist()]
    assert mask.all()
    assert ours.eos_id == -1


def test_a_tokenizer_without_end_mark_survives_a_folder(chinese, tmp_path):
    without_end(chinese).save(tmp_path)
    back = load_tokenizer(str(tmp_path), context=52)
    assert back.eos_id == -1
    assert back(["苹果"])[0].tolist() == without_end(chinese)(["苹果"])[0].tolist()


def test_lits_padding_is_its_end_mark_and_an_over_long_text_keeps_one(pieces):
    ours = padded_with_end(load_tokenizer(str(pieces / "unigram.model"), context=8))
    tokens, mask = ours(["dog", "dog " * 20])
    assert tokens.shape == (2, 8)
    assert tokens[:, -1].tolist() == [1, 1]
    assert tokens[0, -3:].tolist() == [1, 1, 1]
    assert mask.all()


def test_a_vocabulary_without_berts_marks_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"no BERT vocabulary: it has no \[PAD\]"):
        load_tokenizer(str(tmp_path), context=8)


def test_a_broken_sentencepiece_model_says_so(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path), context=8)


def test_without_sentencepiece_the_extra_is_named(pieces, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"pip install 'unicl\[sentencepiece\]'"):
        load_tokenizer(str(Path(pieces) / "unigram.model"), context=8)
