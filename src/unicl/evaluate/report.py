"""What an evaluation found: every number with its interval, what it was made of, and the worst mistakes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unicl.errors import UserError
from unicl.space import ImageSource

Unit = Literal["percent", "fraction", "rank", "correlation"]
Fact = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number: ``key`` as in "zeroshot/top1", its confidence interval, and the ``n`` queries that it is a mean of.

    A fraction lies between 0 and 1 and is written as it is, a percent is one that is written times 100; a correlation
    lies between -1 and 1 and is written times 100.
    """

    key: str
    name: str
    value: float
    low: float
    high: float
    n: int
    unit: Unit = "percent"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """The accuracy of one class over its ``n`` samples."""

    label: str
    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confused:
    """How often samples of the class ``true`` were taken for ``predicted``; both are names."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to a query: a text, an image or both, and its score; ``right`` if it belongs to the query."""

    text: str = ""
    image: ImageSource | None = None
    score: float
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A query (an image, or a text), the right answer that scored best, and what was found in its place."""

    id: str
    text: str = ""
    image: ImageSource | None = None
    rank: int
    wanted: Answer
    found: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One task's outcome; what a task does not have is empty.

    * ``ranks``: by direction, the rank of every query.
    * ``mistakes``: by kind, the worst first.
    * ``notes``: what a reader must know about this task's numbers.
    """

    task: str
    title: str
    scores: tuple[Score, ...]
    classes: tuple[ClassScore, ...] = ()
    confusion: tuple[Confused, ...] = ()
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    mistakes: Mapping[str, tuple[Mistake, ...]] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A sample that was left out because its image cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of all tasks on one set of data; ``level`` is the coverage of the intervals."""

    title: str
    facts: Mapping[str, Fact]
    level: float
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    def numbers(self) -> dict[str, float]:
        """Each number by its key, such as "zeroshot/top1"; the keys are those of `metrics_from_embeddings`."""
        return {score.key: score.value for result in self.results for score in result.scores}

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write evaluation.json, evaluation.md and evaluation.html; raises `UserError` if that cannot be done."""
        from unicl.evaluate.page import to_html

        pages = {"json": to_json(self), "md": to_markdown(self), "html": to_html(self)}
        return tuple(_write(folder / f"evaluation.{ending}", content) for ending, content in pages.items())


def to_json(report: Report) -> str:
    """The report as JSON, with the same bytes for the same report; pictures are left out."""
    content = {
        "title": report.title,
        "facts": dict(report.facts),
        "level": report.level,
        "results": {result.task: _result(result) for result in report.results},
        "notes": list(report.notes),
        "unreadable": [{"id": one.id, "reason": one.reason} for one in report.unreadable],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(report: Report) -> str:
    """The report as Markdown: a table of numbers for each task, with the classes and the confusions below."""
    lines = [f"# Evaluation of {_cell(report.title)}", ""]
    lines += [f"* {name}: {_cell(shown(value))}" for name, value in report.facts.items()]
    for result in report.results:
        lines += ["", f"## {result.title}", "", *_numbers(result, level=report.level)]
        lines += ["", *(f"* {name}: {_cell(shown(value))}" for name, value in result.facts.items())]
        lines += [f"* {_cell(note)}" for note in result.notes]
        lines += _classes(result)
    if report.notes:
        lines += ["", "## Notes", "", *(f"* {_cell(note)}" for note in report.notes)]
    if report.unreadable:
        lines += ["", f"## Images that could not be read ({len(report.unreadable)})", ""]
        lines += [f"* {_cell(one.id)}: {_cell(one.reason)}" for one in report.unreadable]
    return "\n".join(lines) + "\n"


def figure(score: Score, value: float) -> str:
    """A value of a score as people write its kind."""
    if score.unit == "percent":
        return f"{100 * value:.1f} %"
    if score.unit == "correlation":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if score.unit == "fraction" else f"{value:,.1f}"


def shown(fact: Fact) -> str:
    """A fact as people read it."""
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return fact if isinstance(fact, str) else f"{fact:,}" if isinstance(fact, int) else f"{fact:,.4g}"


def most_confused(result: Result, *, most: int) -> tuple[Confused, ...]:
    """The commonest confusions of two different classes."""
    wrong = [one for one in result.confusion if one.true != one.predicted]
    return tuple(sorted(wrong, key=lambda one: -one.count)[:most])


def _result(result: Result) -> dict[str, Any]:
    return {
        "title": result.title,
        "scores": {s.key: {"value": s.value, "low": s.low, "high": s.high, "n": s.n} for s in result.scores},
        "classes": [
            {"label": c.label, "name": c.name, "value": c.value, "low": c.low, "high": c.high, "n": c.n}
            for c in result.classes
        ],
        "confusion": [[c.true, c.predicted, c.count] for c in result.confusion],
        "ranks": {name: list(ranks) for name, ranks in result.ranks.items()},
        "mistakes": {kind: [_mistake(one) for one in several] for kind, several in result.mistakes.items()},
        "facts": dict(result.facts),
        "notes": list(result.notes),
    }


def _mistake(one: Mistake) -> dict[str, Any]:
    found = [{"text": a.text, "score": a.score, "right": a.right} for a in one.found]
    wanted = {"text": one.wanted.text, "score": one.wanted.score}
    return {"id": one.id, "text": one.text, "rank": one.rank, "wanted": wanted, "found": found}


def _numbers(result: Result, *, level: float) -> list[str]:
    rows = [f"| metric | value | {level:.0%} interval | n |", "| --- | ---: | ---: | ---: |"]
    for s in result.scores:
        rows.append(f"| {s.name} | {figure(s, s.value)} | {figure(s, s.low)} to {figure(s, s.high)} | {s.n:,} |")
    return rows


def _classes(result: Result) -> list[str]:
    if not result.classes:
        return []
    lines = ["", "| class | accuracy | interval | n |", "| --- | ---: | ---: | ---: |"]
    for c in sorted(result.classes, key=lambda c: (c.value, c.name)):
        lines.append(
            f"| {_cell(c.name)} | {100 * c.value:.1f} % | {100 * c.low:.1f} to {100 * c.high:.1f} % | {c.n:,} |"
        )
    confused = most_confused(result, most=10)
    if confused:
        lines += ["", "| true | taken for | times |", "| --- | --- | ---: |"]
        lines += [f"| {_cell(c.true)} | {_cell(c.predicted)} | {c.count:,} |" for c in confused]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _write(path: Path, content: str) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is not UTF-8 carries lone surrogates, which no file can hold.
        part.write_bytes(content.encode("utf-8", "replace"))
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}", code=1) from error
    return path
