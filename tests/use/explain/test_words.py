import pytest

from unicl.data.text import load_tokenizer, train_tokenizer
from unicl.errors import UserError
from unicl.towers.parts import TextParts
from unicl.use.explain.words import label_words, labelled, read_words

TOKENS, WORDS = TextParts(), TextParts(words=True, marks="start")


@pytest.fixture(scope="module")
def clip():
    return load_tokenizer("clip", context=77)


@pytest.fixture(scope="module")
def chinese():
    return load_tokenizer("chinese", context=32)


def test_tokens_have_filips_numbers_with_the_start_mark_at_0(clip):
    found = read_words(clip, "a photo of a balloon.", parts=TOKENS)
    assert [(w.text, w.parts) for w in found.words] == [
        ("a", (1,)),
        ("photo", (2,)),
        ("of", (3,)),
        ("a", (4,)),
        ("balloon", (5,)),
        (".", (6,)),
    ]
    assert found.parts[5] == "balloon"
    assert len(found.parts) == 8


def test_pieces_of_a_word_are_one_word(clip):
    found = read_words(clip, "a didgeridoo player", parts=TOKENS)
    assert [w.text for w in found.words] == ["a", "didgeridoo", "player"]
    assert len(found.words[1].parts) > 1
    assert found.words[2].parts == (found.words[1].parts[-1] + 1,)
    assert [w.parts for w in read_words(clip, "a didgeridoo player", parts=WORDS).words] == [(1,), (2,), (3,)]


def test_chinese_characters_are_words(chinese):
    found = read_words(chinese, "红苹果，绿叶", parts=TOKENS)
    assert [w.text for w in found.telling] == list("红苹果绿叶")
    assert [w.text for w in label_words(chinese, "红苹果，绿叶", label="苹果", parts=TOKENS)] == ["苹", "果"]


def test_punctuation_stays_out_of_what_is_shown_unless_it_is_all_there_is(clip):
    assert [w.text for w in read_words(clip, "red, green!", parts=TOKENS).telling] == ["red", "green"]
    assert [w.text for w in read_words(clip, "?!", parts=TOKENS).telling] == ["?!"]


def test_a_label_of_a_template_is_found_where_the_template_has_it(clip):
    found = label_words(clip, "a photo of a {label}.", label="photo", parts=TOKENS)
    assert [w.parts for w in found] == [(5,)]
    assert labelled("a {label}", "red pear") == "a red pear"
    two = label_words(clip, "a photo of a {label}.", label="hot air balloon", parts=TOKENS)
    assert [w.parts for w in two] == [(5,), (6,), (7,)]


def test_a_label_in_the_text_is_found_everywhere_and_in_any_case(clip):
    found = label_words(clip, "An apple beside an Apple", label="APPLE", parts=TOKENS)
    assert [w.parts for w in found] == [(2,), (5,)]


@pytest.mark.parametrize("label", ["pear", "app", "", "   ", "apple on"])
def test_a_label_that_is_not_in_the_text_names_the_words(clip, label):
    with pytest.raises(UserError, match=r"not among the words.*an, apple"):
        label_words(clip, "an apple", label=label, parts=TOKENS)


def test_a_template_without_a_label_says_what_to_give():
    with pytest.raises(UserError, match="--label"):
        labelled("a photo of a {label}.", "")


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_text_says_nothing(clip, text):
    with pytest.raises(UserError, match="says nothing"):
        read_words(clip, text, parts=TOKENS)


@pytest.mark.parametrize("text", ["\u1234\u1235", "\u200b", "\u0000 \ufffd"])
def test_letters_that_a_vocabulary_does_not_have_say_nothing(chinese, text):
    with pytest.raises(UserError, match="says nothing"):
        read_words(chinese, text, parts=TOKENS)


@pytest.mark.parametrize("text", ["[PAD] [PAD]", "[CLS][SEP]"])
def test_marks_that_are_typed_are_read_as_letters(chinese, text):
    """As in training: a text cannot say the marks, so a text of pads only is one of words like any other."""
    assert len(read_words(chinese, text, parts=TOKENS).telling) == 2
    assert len({token for token in chinese([text])[0][0].tolist() if chinese.pieces.marks[token]}) == 2


@pytest.mark.parametrize("text", ["[PAD]", "[PAD] [PAD]", "[UNK]", "[CLS] [SEP]"])
def test_a_text_of_pads_only_says_nothing_where_marks_can_be_typed(text, tmp_path):
    """A vocab.txt is read as transformers reads it, with marks in texts."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\npear\n", encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path), context=8)
    with pytest.raises(UserError, match="says nothing"):
        read_words(tokenizer, text, parts=TOKENS)
    assert [word.text for word in read_words(tokenizer, "a pear", parts=TOKENS).words][-1] == "pear"


def test_a_text_that_is_too_long_is_cut_and_says_so():
    tokenizer = train_tokenizer(["one two three four five six"] * 3, vocab_size=320, context=6)
    found = read_words(tokenizer, "one two three four five six", parts=TOKENS)
    assert found.cut
    assert [w.text for w in found.words] == ["one", "two", "three", "four"]
    assert not read_words(tokenizer, "one two", parts=None).cut


def test_padding_that_counts_as_text_is_no_word():
    tokenizer = train_tokenizer(["a red pear"] * 3, vocab_size=320, context=9, fixed=True)
    found = read_words(tokenizer, "a red pear", parts=TOKENS)
    assert [w.text for w in found.words] == ["a", "red", "pear"]
