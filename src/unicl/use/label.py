"""Findings of many reports, as a table to train on and a table of evidence."""

import csv
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from unicl.data.formats.finding_cells import PREFIX
from unicl.data.loading.pool import pool
from unicl.data.quarantine import Quarantine
from unicl.data.reports.files import Reports, reports
from unicl.data.reports.findings import Extractor, Mention, resolve
from unicl.data.reports.sections import ASIDE, Report
from unicl.data.reports.sentences import count_words, places
from unicl.data.reports.vocabulary import Vocabulary
from unicl.errors import UserError, suggest
from unicl.evaluate.bar import bar
from unicl.space import Finding, Findings

By = Literal["report", "sentence"]
CELLS: Final[Mapping[Finding, str]] = MappingProxyType(
    {Finding.PRESENT: "1", Finding.ABSENT: "0", Finding.UNCERTAIN: "-1", Finding.UNMENTIONED: ""}
)
"""What CheXpert's tables write in a cell."""
EVIDENCE: Final = ("id", "report", "finding", "value", "sentence", "start", "end", "words", "modifier")
SPEAKING: Final = 20
"""So many reports, not one of which says a word of a vocabulary, are of another language or subject."""
CHUNK: Final = 250
"""Reports that a process gets at a time."""
WORTH: Final = 20_000
"""Reports that a further process has to take over: each spends some seconds on starting, as long as 10,000 take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A mention, with its place in the text of its row."""

    sentence: str
    words: str
    mention: Mention


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table: a text, what it says of every finding, and where it says so."""

    id: str
    report: str
    text: str
    image: str | None
    findings: Findings
    evidence: tuple[Evidence, ...]


@dataclass(slots=True, kw_only=True)
class Summary:
    """What was labelled: ``counts`` of each finding's values over the rows, and what was left out.

    ``bare`` reports have sentences, and no word of the vocabulary in them; ``source`` is what reading a table noted.
    """

    reports: int = 0
    rows: int = 0
    unread: int = 0
    reason: str = ""
    bare: int = 0
    source: tuple[str, ...] = ()
    silent: list[str] = field(default_factory=list)
    whole: int = 0
    headings: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[Finding]] = field(default_factory=dict)

    def notes(self) -> tuple[str, ...]:
        """What a user should be told of the reports that were left out, or read otherwise."""
        several = f"{', '.join(self.silent[:3])}{', ...' if len(self.silent) > 3 else ''}"
        said = (
            (self.unread, f"reports that cannot be read: {self.unread:,} (the first: {self.reason})"),
            (self.silent, f"reports without a sentence, left out: {len(self.silent):,} ({several})"),
            (
                self.whole,
                f"{self.whole:,} reports have none of the sections, and are read whole but for {', '.join(ASIDE)}",
            ),
            (
                2 * self.bare > self.reports,
                f"{self.bare:,} of {self.reports:,} reports say no word of the vocabulary: is it of their language and "
                "their subject?",
            ),
        )
        return (*self.source, *(text for number, text in said if number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How reports are read: which vocabulary, a row for what, which sections.

    Sentences with fewer than ``least_words`` words get no row; only where each has one.
    """

    vocabulary: Vocabulary
    by: By = "report"
    least_words: int = 1
    sections: tuple[str, ...] = ("findings", "impression")


def label(
    data: str, out: Path, *, settings: Settings, workers: int = 0, max_bad: int = 100, progress: bool = False
) -> Summary:
    """Write the findings of reports to ``out``, and beside it what decided each: ``NAME.evidence.csv``.

    Both files are there when all is done, or not at all. 0 workers are as many processes as pay for themselves; their
    number does not change the result. Reports that cannot be read, up to ``max_bad``, and those without a sentence are
    left out and listed in ``NAME.quarantine.jsonl``. Raises `UserError` if nothing is left, or medspacy is missing.
    """
    if find_spec("medspacy") is None:
        raise UserError("findings are found by medspacy, which is missing; run: pip install 'unicl[findings]'")
    if not settings.sections:
        raise UserError("no section is named; name those to read, such as --sections findings,impression")
    if workers < 0 or max_bad < 0:
        raise UserError(f"--workers {workers} and --max-bad {max_bad}: neither can be below 0")
    if settings.least_words > 1 and settings.by != "sentence":
        raise UserError("--least-words leaves out sentences, but each row is a report; add --by sentence")
    _check(out, data=data)
    listed = out.with_suffix(".quarantine.jsonl")
    listed.unlink(missing_ok=True)
    quarantine = Quarantine(limit=max_bad, path=listed)
    source = reports(data, quarantine=quarantine)
    count = workers or max(1, min(os.cpu_count() or 1, source.total // WORTH))
    summary = Summary(source=source.notes)
    with (
        _Tables(out, names=settings.vocabulary.names) as tables,
        bar("labelling", total=source.total, shown=progress) as step,
    ):
        for found in _labelled(_noted(source, summary, settings=settings), settings=settings, workers=count):
            for id, rows in found:
                _add(summary, id, rows)
                tables.write(rows)
            step(len(found))
        summary.unread = len(quarantine)
        summary.reason = _first(quarantine.reasons)
        _require(summary, settings=settings, data=data)
    silent = Quarantine(limit=sys.maxsize, path=listed)
    for id in summary.silent:
        silent.add(id, reason="no sentence in the sections that are read")
    return summary


def rows_of(report: Report, extractor: Extractor, *, settings: Settings) -> list[Row]:
    """The rows of one report: one with all its sentences, or one for each; none if it has no sentence."""
    text = report.text(settings.sections)
    found = places(text)
    if settings.by == "report":
        return [_row(report, text, found, extractor)] if found else []
    return [
        _row(report, text[start:end], ((0, end - start),), extractor, number=number)
        for number, (start, end) in enumerate(found, start=1)
        if count_words(text[start:end]) >= settings.least_words
    ]


def show(summary: Summary, console: Console) -> None:
    """How often each finding is present, uncertain and absent."""
    table = Table("finding", "present", "uncertain", "absent", "not mentioned")
    for name, counts in summary.counts.items():
        table.add_row(
            name,
            *(
                f"{counts[value]:,}"
                for value in (Finding.PRESENT, Finding.UNCERTAIN, Finding.ABSENT, Finding.UNMENTIONED)
            ),
        )
    console.print(table)


def evidence_path(out: Path) -> Path:
    """Where the evidence of a table is."""
    return out.with_suffix(".evidence.csv")


def _row(report: Report, text: str, spans: Sequence[tuple[int, int]], extractor: Extractor, *, number: int = 0) -> Row:
    evidence = []
    for start, end in spans:
        sentence = text[start:end]
        for mention in extractor(sentence):
            words = sentence[mention.start : mention.end]
            evidence.append(Evidence(sentence=sentence, words=words, mention=mention.moved(start)))
    return Row(
        id=f"{report.id}#{number}" if number else report.id,
        report=report.id,
        text=text,
        image=report.image,
        findings=resolve((each.mention for each in evidence), extractor.vocabulary),
        evidence=tuple(evidence),
    )


_Chunk = list[tuple[str, list[Row]]]


def _labelled(source: Iterable[Report], *, settings: Settings, workers: int) -> Iterator[_Chunk]:
    """The rows of all reports in their order, by chunks."""
    left = iter(source)
    chunks = iter(lambda: list(islice(left, CHUNK)), [])
    if workers <= 1:
        yield from (_work(chunk, settings=settings) for chunk in chunks)
        return
    with pool(workers) as processes:
        waiting: deque[Future[_Chunk]] = deque()
        for chunk in chunks:
            waiting.append(processes.submit(_work, chunk, settings=settings))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _work(chunk: Sequence[Report], *, settings: Settings) -> _Chunk:
    extractor = _extractor(settings.vocabulary)
    return [(report.id, rows_of(report, extractor, settings=settings)) for report in chunk]


@cache
def _extractor(vocabulary: Vocabulary) -> Extractor:
    """The one extractor of a process."""
    return Extractor(vocabulary)


def _noted(source: Reports, summary: Summary, *, settings: Settings) -> Iterator[Report]:
    for report in source.read():
        summary.headings.update({part.name for part in report.sections if part.name})
        summary.whole += not report.has(settings.sections) and any(part.name for part in report.sections)
        yield report


def _add(summary: Summary, id: str, rows: Sequence[Row]) -> None:
    summary.reports += 1
    summary.rows += len(rows)
    if not rows:
        summary.silent.append(id)
    summary.bare += bool(rows) and not any(row.evidence for row in rows)
    for row in rows:
        for name, value in row.findings:
            summary.counts.setdefault(name, Counter())[value] += 1


def _first(reasons: Mapping[str, str]) -> str:
    """The first reason, with the name of its file once."""
    return next((reason if id in reason else f"{id}: {reason}" for id, reason in reasons.items()), "")


def _require(summary: Summary, *, settings: Settings, data: str) -> None:
    if not summary.rows:
        first = f"\nThe first that cannot be read: {summary.reason}" if summary.reason else ""
        raise UserError(
            f"no report of {data!r} has a sentence to read ({summary.unread:,} cannot be read, {len(summary.silent):,} "
            f"are empty); name the folder or column that holds them{first}"
        )
    if summary.bare == summary.reports >= SPEAKING:
        raise UserError(
            f"none of the {summary.reports:,} reports says a word of the vocabulary {settings.vocabulary.name!r}; give "
            "--vocabulary FILE with terms, and words that deny them, of their language and subject"
        )
    if summary.headings and summary.whole == summary.reports:
        asked, there = ", ".join(settings.sections), [name for name, _ in summary.headings.most_common(12)]
        near = suggest(settings.sections[0], there)
        raise UserError(f"no report has a section called {asked}{near}; there are: {', '.join(there)}")


def _check(out: Path, *, data: str) -> None:
    if out.suffix.casefold() != ".csv":
        raise UserError(f"--out is {str(out)!r}, but a table is written: give a name that ends in .csv")
    read = Path(data.partition("?")[0]).expanduser().resolve()
    for path in (out, evidence_path(out)):
        if path.exists() and path.resolve() == read:
            raise UserError(f"--out {str(out)!r}: {path.name} is the table that is read; give another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {str(out)!r}: {error.strerror or error}") from error


class _Tables:
    """The two tables while they are written; they get their names at the end, if nothing went wrong."""

    def __init__(self, out: Path, *, names: Sequence[str]) -> None:
        self._paths = (out, evidence_path(out))
        self._parts = tuple(path.with_name(path.name + ".part") for path in self._paths)
        self._names = names
        self._stack = ExitStack()

    def __enter__(self) -> "_Tables":
        try:
            files = [self._stack.enter_context(part.open("w", encoding="utf-8", newline="")) for part in self._parts]
        except OSError as error:
            raise UserError(f"cannot write {str(self._paths[0])!r}: {error.strerror or error}") from error
        self._rows, self._evidence = (csv.writer(file, lineterminator="\n") for file in files)
        self._head: tuple[str, ...] | None = None
        self._evidence.writerow(EVIDENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._stack.close()
        for part, path in zip(self._parts, self._paths, strict=True):
            if kind is None:
                part.replace(path)
            else:
                part.unlink(missing_ok=True)

    def write(self, rows: Sequence[Row]) -> None:
        """Rows and their evidence; the first row says whether the table has images."""
        for row in rows:
            if self._head is None:
                self._head = ("id", *(("image",) if row.image else ()), "text")
                self._rows.writerow((*self._head, *(PREFIX + name for name in self._names)))
            image = (row.image or "",) if "image" in self._head else ()
            self._rows.writerow((row.id, *image, row.text, *(CELLS[value] for _, value in row.findings)))
            self._evidence.writerows(_lines(row, none=self._names[0]))


def _lines(row: Row, *, none: str) -> Iterator[tuple[object, ...]]:
    for each in row.evidence:
        mention = each.mention
        # What is no finding of the list is evidence against finding nothing.
        name, value = (mention.finding, CELLS[mention.value]) if mention.finding else (none, "")
        yield (row.id, row.report, name, value, each.sentence, mention.start, mention.end, each.words, mention.cue)
