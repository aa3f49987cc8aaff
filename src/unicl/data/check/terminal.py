"""The report as a few tables in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unicl.data.check.advice import percent, plural
from unicl.data.check.report import CheckReport, Level

MARKS = ((Level.OK, "ok", "green"), (Level.LOOK, "look", "yellow"), (Level.PROBLEM, "problem", "bold red"))


def show(report: CheckReport, *, console: Console | None = None) -> None:
    """Print the report: sources, findings, what equal texts cost at each batch size, memory, and the recipe."""
    console = console or Console()
    console.print(_sources(report), _findings(report))
    if report.meetings:
        console.print("\nrows of a batch that meet an equal one, and the least loss (nats) of recipe clip:")
        console.print(_meetings(report))
    console.print(_memory(report))
    console.print(_recipe(report))


def gigabytes(size: int) -> str:
    """Bytes as a short decimal number."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _sources(report: CheckReport) -> Table:
    table = Table("source", "format", "samples", "columns in use", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[2].justify = "right"
    for source in report.sources:
        columns = ", ".join(f"{role} = {column}" for role, column in source.columns.items())
        notes = "".join(f"\n{note}" for note in source.notes)
        table.add_row(escape(source.name), source.format, f"{source.samples:,}", escape(columns + notes))
    return table


def _findings(report: CheckReport) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    words = {level: (word, style) for level, word, style in MARKS}
    topic = ""
    for finding in report.findings:
        word, style = words[finding.level]
        text = Text(finding.text)
        if finding.advice:
            text.append(f"\n{finding.advice}", style="dim")
        table.add_row(Text(word, style=style), "" if finding.topic == topic else finding.topic, text)
        topic = finding.topic
    return table


def _meetings(report: CheckReport) -> Table:
    sizes = sorted({meeting.batch_size for meeting in report.meetings})
    table = Table("batch", *(f"{size:,}" for size in sizes), box=SIMPLE_HEAD, pad_edge=False)
    for key in dict.fromkeys(meeting.key for meeting in report.meetings):
        found = {m.batch_size: m.numbers for m in report.meetings if m.key == key}
        cells = [f"{percent(n.share)}  {n.floor:.2f}" if (n := found.get(size)) else "" for size in sizes]
        table.add_row(f"same {key}", *cells)
    return table


def _memory(report: CheckReport) -> Table:
    title = f"estimated memory, batch {report.batch_size:,}, bf16"
    table = Table(title, "parameters", "states", "activations", "scores", "total", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for memory in report.memory:
        sizes = (memory.states, memory.activations, memory.scores, memory.total)
        table.add_row(memory.model, f"{memory.parameters / 1e6:.1f} M", *map(gigabytes, sizes))
    return table


def _recipe(report: CheckReport) -> Text:
    if not report.recipe:
        count = plural(len(report.problems), "problem makes", many="problems make")
        return Text(f"{count} training impossible: {report.problems[0].text}", style="bold red")
    text = Text.assemble("recipe ", (report.recipe, "bold green"), f": {report.reason}")
    if report.problems:
        text.append(f"\nbut: {report.problems[0].text}", style="bold red")
    return text
