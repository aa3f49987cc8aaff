from unicl.data.text import load_tokenizer, train_tokenizer
from unicl.model import words_of
from unicl.objective.words import Words


def test_marks_are_all_entries_that_are_no_words():
    assert Words(size=9, pad=0, start=-1, end=2, mask=8).marks == (0, 2, 8)
    assert Words(size=9, pad=2, start=1, end=2, mask=8).marks == (1, 2, 8)


def test_a_tokenizer_says_its_marks_and_gets_a_mask_of_its_own_if_it_has_none():
    own = train_tokenizer(["a cat", "a dog"], vocab_size=300, context=8)
    size = own.vocab_size
    assert words_of(own) == Words(size=size + 1, pad=0, start=1, end=2, mask=size, context=8)
    berts = load_tokenizer("chinese", context=8)
    known = berts.inner.token_to_id
    marks = {"pad": "[PAD]", "start": "[CLS]", "end": "[SEP]", "mask": "[MASK]"}
    expected = Words(size=21_128, context=8, **{name: known(mark) for name, mark in marks.items()})
    assert words_of(berts) == expected
