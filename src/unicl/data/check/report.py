"""What `check` found, as plain data: nothing here computes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from unicl.data.check.floor import FalseNegatives


class Level(StrEnum):
    """How bad a finding is: fine, worth a look, or training cannot work."""

    OK = "ok"
    LOOK = "look"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line for the user: what was found about ``topic``, and what to do about it (empty if nothing)."""

    level: Level
    topic: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A sample by the name of its source and its id there."""

    source: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """A source as it was read: ``columns`` in use, and what its reader had to say."""

    name: str
    path: str
    format: str
    samples: int
    weight: float
    columns: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """Samples by what they have. The first seven add up to ``samples``; the last two count again."""

    samples: int
    image_label: int
    image_caption: int
    image_label_caption: int
    image_only: int
    text_only: int
    label_only: int
    nothing: int
    several_captions: int
    several_labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSize:
    """A class and how many samples carry it; ``examples`` are some of them that have an image."""

    label: str
    namespace: str
    size: int
    examples: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """All classes: their sizes, the ends of the list, and labels that might be one class but are kept apart.

    ``ranked`` are sizes from the largest to the smallest, at evenly spaced ranks if there are many classes.
    ``apart`` lists labels that occur in several namespaces with those namespaces; ``spelling`` lists groups of labels
    of one namespace that differ only in case or white space.
    """

    count: int
    samples: int
    median: float
    singletons: int
    largest: tuple[ClassSize, ...]
    smallest: tuple[ClassSize, ...]
    ranked: tuple[int, ...]
    apart_count: int
    apart: tuple[tuple[str, tuple[str, ...]], ...]
    spelling_count: int
    spelling: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFinding:
    """A finding, and of how many images and texts it is known to be present, uncertain, absent or not mentioned."""

    name: str
    images: tuple[int, int, int, int]
    texts: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A sample whose image cannot be used, and why."""

    ref: Ref
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The image column: ``rows`` samples have one, of ``distinct`` files, of which ``looked`` were opened.

    Sides are in pixels, ``(smallest, median, largest)``; ``tiny`` have a side under 32 pixels, ``long`` are more than
    three times as long as wide, ``plain`` show one colour.
    """

    rows: int
    distinct: int
    looked: int
    unreadable: int
    reasons: tuple[tuple[str, int], ...]
    unreadable_list: tuple[Unreadable, ...]
    width: tuple[int, float, int]
    height: tuple[int, float, int]
    sides: tuple[tuple[int, int], ...]
    tiny: int
    long: int
    plain: int
    tiny_examples: tuple[Ref, ...]
    long_examples: tuple[Ref, ...]
    plain_examples: tuple[Ref, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyGroup:
    """Samples that show one picture: ``size`` of them, some as ``refs``, and what they say of it."""

    size: int
    refs: tuple[Ref, ...]
    labels: tuple[str, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFacts:
    """Groups of copies of one kind: how many groups and images, and the largest.

    ``across_sources`` groups lie in several sources; ``labels_differ`` and ``captions_differ`` are groups whose samples
    carry different labels or captions.
    """

    groups: int
    images: int
    across_sources: int
    labels_differ: int
    captions_differ: int
    examples: tuple[CopyGroup, ...]
    label_examples: tuple[CopyGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Pictures that occur more than once.

    ``rows``: several samples name one file; ``files``: equal bytes; ``pixels``: equal pixels in different bytes;
    ``near``: alike, not equal, where no pair whose hashes differ in up to ``near_exact_to`` bits was missed.
    """

    rows: CopyFacts
    files: CopyFacts
    pixels: CopyFacts
    near: CopyFacts
    near_exact_to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """The caption column: ``texts`` captions of which ``distinct`` differ; ``repeated`` are equal to another sample's.

    Lengths are in tokens of ``tokenizer``, start and end included, from ``measured`` captions drawn evenly:
    ``(shortest, median, longest)``; ``cut`` is the share longer than ``context``; ``histogram`` holds
    ``(from, to, count)``.
    """

    texts: int
    distinct: int
    blank: int
    repeated: int
    commonest: tuple[tuple[str, int], ...]
    measured: int
    tokenizer: str
    context: int
    length: tuple[int, float, int]
    cut: float
    histogram: tuple[tuple[int, int, int], ...]
    longest: str
    languages: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """How often rows with one key meet in a batch of ``batch_size``; ``key`` is "class", "caption" or "image"."""

    key: str
    batch_size: int
    numbers: FalseNegatives


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Estimated bytes while training ``model`` in bf16: what its parameters, kept activations and scores take."""

    model: str
    batch_size: int
    parameters: int
    states: int
    activations: int
    scores: int

    @property
    def total(self) -> int:
        """All parts together, in bytes."""
        return self.states + self.activations + self.scores


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Everything `check` found; ``recipe`` is empty if nothing can be trained; ``known`` are findings of the data."""

    sources: tuple[SourceFacts, ...]
    kinds: Kinds
    classes: Classes
    images: Images
    copies: Copies
    captions: Captions
    batch_size: int
    meetings: tuple[Meeting, ...]
    memory: tuple[Memory, ...]
    recipe: str
    reason: str
    findings: tuple[Finding, ...]
    known: tuple[KnownFinding, ...] = ()

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What makes training impossible; the command's exit status is 1 if there is one."""
        return tuple(finding for finding in self.findings if finding.level is Level.PROBLEM)

    def to_json(self) -> str:
        """The report as JSON with the field names of these classes."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2, allow_nan=False)
        # A file name that is not UTF-8 carries lone surrogates, which no file can hold.
        return text.encode("utf-8", "replace").decode()
