"""Tags that captions give to their images: their words by part of speech, or the cluster they fall into.

ICMLM's tag prediction (Sariyildiz et al. 2020, section 3.2): TP_Postag takes the most frequent nouns, nouns and
adjectives, or nouns, adjectives and verbs; TP_Cluster clusters of what a language model says of captions.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from unicl.data.sources import Source
from unicl.data.words.phrases import NOUNS, Parsed
from unicl.errors import UserError

Speech = Literal["nouns", "adjectives", "verbs"]
SPEECH: Final[Mapping[Speech, frozenset[str]]] = MappingProxyType(
    {"nouns": NOUNS, "adjectives": NOUNS | {"ADJ"}, "verbs": NOUNS | {"ADJ", "VERB"}}
)
"""The parts of speech of tags: each kind has those of the kinds before it."""
NAMESPACE: Final = "tags"

Vectors = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What images are tagged with before training, in place of labels.

    ``by``: "nouns", "adjectives" (and nouns) or "verbs" (and both): the ``count`` most frequent lemmas of captions;
    "clusters": ``count`` clusters of what the recipe's language model says of captions.
    """

    by: Speech | Literal["clusters"] = "nouns"
    count: int = 1000

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UserError(f"{self.count} tags cannot tell images apart; give a count of 2 or more")


def captions_of(sources: Iterable[Source]) -> Counter[str]:
    """How many samples show each caption; raises `UserError` if there is none."""
    counts = Counter(caption for source in sources for sample in source.samples for caption in sample.captions)
    if not counts:
        raise UserError(
            "this recipe learns from the words of captions, but the data has none; name the column of texts: "
            "'PATH?text=COLUMN'"
        )
    return counts


def tags_by_speech(
    captions: Counter[str], read: Iterable[Parsed | None], *, speech: Speech, count: int
) -> dict[str, tuple[str, ...]]:
    """The tags of each caption: those of its lemmas that are among the ``count`` most frequent ones.

    ``read`` are the captions in words, in their order. Raises `UserError` if no caption has such a word.
    """
    found: dict[str, tuple[str, ...]] = {}
    seen: Counter[str] = Counter()
    for caption, parsed in zip(captions, read, strict=True):
        words = () if parsed is None else parsed.words
        found[caption] = tuple(dict.fromkeys(word.lemma for word in words if word.part in SPEECH[speech]))
        for lemma in found[caption]:
            seen[lemma] += captions[caption]
    kept = most_frequent(seen, count)
    if not kept:
        raise UserError(f"no caption has {spoken(speech)} to make tags of; captions in English and Chinese are read")
    return {caption: tuple(lemma for lemma in lemmas if lemma in kept) for caption, lemmas in found.items()}


def tags_by_cluster(
    captions: Counter[str], *, count: int, vectors: Vectors, seed: int = 0
) -> dict[str, tuple[str, ...]]:
    """The cluster of each caption: k-means in mini-batches over what a language model says of distinct captions."""
    from sklearn.cluster import MiniBatchKMeans

    rows = vectors(list(captions))
    weights = np.array(list(captions.values()), dtype=np.float64)
    means = MiniBatchKMeans(n_clusters=min(count, len(rows)), random_state=seed, n_init=3, batch_size=4096)
    clusters = means.fit_predict(rows, sample_weight=weights)
    return {caption: (f"cluster {cluster}",) for caption, cluster in zip(captions, clusters.tolist(), strict=True)}


def tagged(source: Source, tags: Mapping[str, Sequence[str]]) -> Source:
    """The source with the tags of all captions of a sample as its labels; a sample without captions has none."""
    samples = tuple(
        replace(
            sample,
            labels=tuple(dict.fromkeys(tag for caption in sample.captions for tag in tags.get(caption, ()))),
            namespace=NAMESPACE,
        )
        for sample in source.samples
    )
    return replace(source, samples=samples)


def most_frequent(seen: Counter[str], count: int) -> frozenset[str]:
    """The ``count`` most frequent lemmas; of equally frequent ones, the first by name."""
    return frozenset(sorted(seen, key=lambda lemma: (-seen[lemma], lemma))[:count])


def spoken(speech: Speech) -> str:
    """What a kind of parts of speech is called in a sentence."""
    return {"nouns": "a noun", "adjectives": "a noun or an adjective", "verbs": "a noun, an adjective or a verb"}[
        speech
    ]
