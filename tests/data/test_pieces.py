"""Vocabularies of every kind say where their words begin and end."""

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors, trainers

from unicl.data.pieces import Pieces
from unicl.data.text import Tokenizer, load_tokenizer, train_tokenizer

SAYINGS = [
    "a red square on the table",
    "two dogs, running!",
    "well-known 42 cats",
    "红苹果在桌子上",
    "don't stop (ever)",
]


def byte_level():
    """A tokenizer of RoBERTa's kind."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(SAYINGS * 3, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return Tokenizer(inner, name="bytes", context=40, eos_id=1, pad_id=2)


@pytest.fixture(scope="module")
def made():
    return {
        "clip": load_tokenizer("clip", context=40),
        "chinese": load_tokenizer("chinese", context=40),
        "train": train_tokenizer(SAYINGS * 3, vocab_size=380, context=40),
        "bytes": byte_level(),
    }


def words_of(tokenizer, text):
    """The entries of each word, by a plain loop: a word begins where one opens, or behind one that closes."""
    pieces, words, fresh, joined = tokenizer.pieces, [], True, False
    for number in tokenizer([text])[0][0].tolist():
        entry = pieces.entries[number]
        if not pieces.marks[number]:
            if fresh or (pieces.opens[number] and not joined):
                words.append(entry)
            else:
                words[-1] += entry
        fresh, joined = bool(pieces.closes[number]), bool(pieces.blank[number])
    return [word.replace("##", "").replace("</w>", "").replace("▁", "").replace("Ġ", "") for word in words]


ENGLISH = ["dogs", ",", "well", "-", "known", "square", "(", "table", ")"]


@pytest.mark.parametrize("kind", ["clip", "chinese", "train", "bytes"])
def test_english_words_are_parted_alike_by_every_kind(kind, made):
    assert words_of(made[kind], "dogs, well-known square (table)") == ENGLISH


def test_chinese_signs_are_words_of_their_own(made):
    trained = train_tokenizer(["红 苹 果 狗 red"] * 4, vocab_size=330, context=40)
    for tokenizer in (made["chinese"], trained):
        assert words_of(tokenizer, "红苹果 red 狗") == ["红", "苹", "果", "red", "狗"]


@pytest.mark.parametrize("kind", ["train", "bytes"])
def test_bytes_of_one_sign_are_no_words_and_a_blank_belongs_to_what_follows(kind, made):
    pieces, tokenizer = made[kind].pieces, made[kind]
    assert len(words_of(tokenizer, "😀 zq é")) == 3
    blanks = [entry for entry, blank in zip(pieces.entries, pieces.blank.tolist(), strict=True) if blank]
    assert set(blanks) <= {"▁", "Ġ", "<0x20>"}
    assert blanks


def test_marks_open_and_close_and_are_never_blank(made):
    for tokenizer in made.values():
        pieces = tokenizer.pieces
        numbers = tokenizer.inner.encode("").ids
        assert pieces.marks.nonzero().flatten().tolist() == sorted(numbers)
        assert pieces.opens[numbers].all()
        assert pieces.closes[numbers].all()
        assert not pieces.blank[numbers].any()


def test_the_kind_is_what_most_entries_say():
    # GPT-2 has an entry for headings of Markdown.
    pieces = Pieces.of(["##", "##", "Ġa", "Ġb", "c", "."], marks=[])
    assert pieces.opens.tolist() == [True, True, True, True, False, True]
    pieces = Pieces.of(["▁", "##ing", "##ed", "go"], marks=[])
    assert pieces.opens.tolist() == [True, False, False, True]
    pieces = Pieces.of(["go</w>", "##", "g"], marks=[])
    assert (pieces.opens.tolist(), pieces.closes.tolist()) == ([False] * 3, [True, False, False])


def test_signs_of_which_a_piece_has_some_bytes_only_do_not_part_words():
    # The bytes of "红" are E7 BA A2; of "é" C3 A9; those behind the first begin no word, whatever letters show them.
    pieces = Pieces.of(["ç", "º", "Ã", "Ġx"], marks=[])
    assert pieces.opens.tolist() == [True, False, False, True]
    assert pieces.closes.tolist() == [False] * 4


def test_an_empty_vocabulary_and_another_device_are_no_matter():
    pieces = Pieces.of([], marks=[])
    assert pieces.opens.shape == (0,)
    moved = Pieces.of(["a"], marks=[0]).to(torch.device("meta"))
    assert {part.device.type for part in (moved.opens, moved.closes, moved.blank, moved.marks)} == {"meta"}
    assert moved.to(torch.device("meta")) is moved
