import pytest
import sentencepiece

from unicl.data.text import load_tokenizer
from unicl.errors import UserError
from unicl.towers.weights.lit_tokenizer import sentencepiece_tokenizer, wordpiece_tokenizer

LINES = ["a red fruit on the table", "the blue house by the river", "two small dogs, three cats!", "Ein Ünglück"]
TEXTS = ["a red fruit", "  THE   river\n", "猫 on the table", "", "ﬁve déjà vu ½", "the blue house " * 9]


def trained(folder, kind):
    (folder / "texts.txt").write_text("\n".join(LINES * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "pieces"),
        vocab_size=36,
        model_type=kind,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "pieces.model"


def test_pieces_are_sentencepieces_with_end_marks_behind(tmp_path):
    file = trained(tmp_path, "unigram")
    ours = sentencepiece_tokenizer(file, context=16)
    processor = sentencepiece.SentencePieceProcessor(str(file))
    tokens, mask = ours(TEXTS)
    assert tokens.tolist() == [(processor.encode(text)[:15] + [1] * 16)[:16] for text in TEXTS]
    assert bool(mask.all())
    ours.save(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"), context=16, fixed=True)
    assert again(TEXTS)[0].tolist() == tokens.tolist()


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "no.model").write_bytes(b"no model at all")
    with pytest.raises(UserError, match="is no SentencePiece model"):
        sentencepiece_tokenizer(tmp_path / "no.model", context=16)


def test_a_model_of_merges_is_refused(tmp_path):
    with pytest.raises(UserError, match="only unigram models"):
        sentencepiece_tokenizer(trained(tmp_path, "bpe"), context=16)


def test_word_pieces_have_a_class_mark_and_no_end_mark(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "fruit", "##s", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    ours = wordpiece_tokenizer(tmp_path / "vocab.txt", context=5)
    tokens, mask = ours(["A réd fruits!", "a", "a a a a a a a", "zebra"])
    assert tokens.tolist() == [[2, 4, 5, 6, 7], [2, 4, 0, 0, 0], [2, 4, 4, 4, 4], [2, 1, 0, 0, 0]]
    assert mask.sum(1).tolist() == [5, 2, 5, 2]


def test_a_vocabulary_without_the_marks_of_bert_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no \[CLS\] and no \[UNK\]"):
        wordpiece_tokenizer(tmp_path / "vocab.txt", context=5)
