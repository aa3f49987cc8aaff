import time

import pytest

from unicl.data.check.table import table
from unicl.data.check.texts import caption_counts, captions
from unicl.data.text import Tokenizer, train_tokenizer
from unicl.space import Sample


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a photo of a cat", "a dog on the grass", "一只猫"] * 5, vocab_size=512, context=77)


def of(make_source, *groups: tuple[str, ...]):
    return table([make_source([Sample(id=str(k), captions=texts) for k, texts in enumerate(groups)])])


def test_captions_count_as_equal_whatever_their_case_and_blanks(make_source, tokenizer: Tokenizer) -> None:
    rows = of(make_source, ("A cat",), ("a  CAT",), ("a dog", "a dog"), ("a bird",))
    counts = caption_counts(rows)
    assert counts == {"a cat": 2, "a dog": 1, "a bird": 1}
    found = captions(rows, counts, context=77, tokenizer=tokenizer)
    assert (found.texts, found.distinct, found.repeated) == (5, 3, 2)
    assert found.commonest == (("a cat", 2),)


def test_long_captions_are_those_that_the_tokenizer_cuts(make_source, tokenizer: Tokenizer) -> None:
    texts = ["cat", "cat " * 30, "cat " * 9, "dog"]
    rows = of(make_source, *((text,) for text in texts))
    found = captions(rows, caption_counts(rows), context=8, tokenizer=tokenizer)
    lengths = tokenizer.lengths(texts).tolist()
    assert found.cut == sum(n > 8 for n in lengths) / 4 == 0.5
    assert found.length == (min(lengths), sorted(lengths)[1] / 2 + sorted(lengths)[2] / 2, max(lengths))
    assert found.longest.startswith("cat cat")


def test_the_bars_hold_every_caption_without_gaps(make_source, tokenizer: Tokenizer) -> None:
    rows = of(make_source, *(("cat " * k,) for k in range(1, 400)))
    found = captions(rows, caption_counts(rows), context=77, tokenizer=tokenizer)
    assert sum(count for _, _, count in found.histogram) == 399
    assert all(a[1] + 1 == b[0] for a, b in zip(found.histogram, found.histogram[1:], strict=False))
    assert (found.histogram[0][0], found.histogram[-1][1]) == (found.length[0], found.length[2])


def test_languages_are_shares(make_source, tokenizer: Tokenizer) -> None:
    rows = of(make_source, ("a cat",), ("a dog",), ("一只猫",), ("кот",))
    found = captions(rows, caption_counts(rows), context=77, tokenizer=tokenizer)
    assert dict(found.languages) == {"latin": 0.5, "zh": 0.25, "ru": 0.25}


def test_blank_captions_are_counted_and_are_no_text(make_source, tokenizer: Tokenizer) -> None:
    rows = of(make_source, ("",), ("  ",), ("a cat",))
    found = captions(rows, caption_counts(rows), context=77, tokenizer=tokenizer)
    assert (found.blank, found.distinct) == (2, 1)


def test_no_caption_at_all_is_no_error(make_source, tokenizer: Tokenizer) -> None:
    rows = of(make_source, ())
    found = captions(rows, caption_counts(rows), context=77, tokenizer=tokenizer)
    assert (found.texts, found.length, found.histogram) == (0, (0, 0.0, 0), ())


def test_many_captions_take_seconds_and_lengths_come_from_a_spread(make_source, tokenizer: Tokenizer) -> None:
    rows = of(make_source, *((f"a photo of thing {k % 70_000}",) for k in range(100_000)))
    start = time.perf_counter()
    found = captions(rows, caption_counts(rows), context=77, tokenizer=tokenizer)
    assert time.perf_counter() - start < 20
    assert (found.texts, found.distinct, found.repeated) == (100_000, 70_000, 60_000)
    assert found.measured == 30_000
