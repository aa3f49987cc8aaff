"""The captions: how many differ, how long they are, which languages they are in."""

from collections import Counter

import numpy as np
import numpy.typing as npt

from unicl.data.check.report import Captions
from unicl.data.check.table import Table, evenly
from unicl.data.keys import normalise
from unicl.data.text import Tokenizer, languages

COMMONEST = 12
MEASURED = 30_000
BARS = 26
SHOWN_LENGTH = 400

Ints = npt.NDArray[np.int64]


def caption_counts(table: Table) -> Counter[str]:
    """How many rows carry each caption, written as `normalise` writes it; blank ones are left out.

    A caption that one row carries twice counts once: it cannot meet itself in a batch.
    """
    counts: Counter[str] = Counter()
    for sample in table.samples:
        if len(sample.captions) == 1:
            counts[normalise(sample.captions[0])] += 1
        else:
            counts.update({normalise(caption) for caption in sample.captions})
    counts.pop("", None)
    return counts


def captions(table: Table, counts: Counter[str], *, context: int, tokenizer: Tokenizer) -> Captions:
    """All about the caption column; tokens and languages from at most `MEASURED` captions, evenly spread."""
    texts = [caption for _, caption in table.captions()]
    some = [texts[k] for k in evenly(len(texts), limit=MEASURED)]
    lengths = tokenizer.lengths(some).numpy() if some else np.zeros(0, dtype=np.int64)
    scripts = Counter(languages(text) for text in some)
    return Captions(
        texts=len(texts),
        distinct=len(counts),
        blank=sum(1 for text in texts if not text or text.isspace()),
        repeated=sum(count for count in counts.values() if count > 1),
        commonest=tuple((text[:SHOWN_LENGTH], count) for text, count in counts.most_common(COMMONEST) if count > 1),
        measured=len(some),
        tokenizer=tokenizer.name,
        context=context,
        length=three(lengths),
        cut=float((lengths > context).mean()) if some else 0.0,
        histogram=_histogram(lengths, context=context),
        longest=some[int(lengths.argmax())][:SHOWN_LENGTH] if some else "",
        languages=tuple((name, count / len(some)) for name, count in scripts.most_common()),
    )


def three(values: Ints) -> tuple[int, float, int]:
    """Smallest, median, largest; zeros for nothing."""
    if not len(values):
        return 0, 0.0, 0
    return int(values.min()), float(np.median(values)), int(values.max())


def _histogram(lengths: Ints, *, context: int) -> tuple[tuple[int, int, int], ...]:
    """``(from, to, count)``, ends included; the last bar takes all beyond twice the context."""
    if not len(lengths):
        return ()
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(min(high, 2 * context) - low + 1) // BARS))
    bar = np.minimum((lengths - low) // width, BARS - 1)
    counts = np.bincount(bar)
    ends = [low + (k + 1) * width - 1 for k in range(len(counts))]
    ends[-1] = max(ends[-1], high)
    return tuple((low + k * width, end, int(count)) for k, (end, count) in enumerate(zip(ends, counts, strict=True)))
