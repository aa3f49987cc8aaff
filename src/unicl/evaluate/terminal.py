"""The report on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unicl.evaluate.report import Report, Result, figure, most_confused, shown

LISTED = 10


def print_report(report: Report, *, console: Console | None = None) -> None:
    """Tables of all numbers with their intervals, the weakest classes, the notes, and the images left out."""
    console = console or Console()
    console.print(f"[bold]Evaluation of {escape(report.title)}[/bold]")
    for result in report.results:
        console.print()
        console.print(_numbers(result, level=report.level) if result.scores else f"[bold]{result.title}[/bold]")
        facts = "; ".join(f"{name}: {shown(value)}" for name, value in result.facts.items())
        console.print(f"[dim]{escape(facts)}[/dim]")
        _classes(result, console)
        for note in result.notes:
            console.print(f"[yellow]Note:[/yellow] {escape(note)}")
    for note in report.notes:
        console.print(f"[yellow]Note:[/yellow] {escape(note)}")
    _unreadable(report, console)


def _numbers(result: Result, *, level: float) -> Table:
    table = Table(title=result.title, title_justify="left", title_style="bold")
    table.add_column("metric")
    for name in ("value", f"{level:.0%} interval", "n"):
        table.add_column(name, justify="right")
    for score in result.scores:
        interval = f"{figure(score, score.low)} to {figure(score, score.high)}"
        table.add_row(score.name, figure(score, score.value), interval, f"{score.n:,}")
    return table


def _classes(result: Result, console: Console) -> None:
    if not result.classes:
        return
    weakest = sorted(result.classes, key=lambda one: (one.value, one.name))[:LISTED]
    table = Table(title="Weakest classes", title_justify="left")
    table.add_column("class")
    for name in ("accuracy", "interval", "n"):
        table.add_column(name, justify="right")
    for one in weakest:
        interval = f"{100 * one.low:.1f} to {100 * one.high:.1f} %"
        table.add_row(escape(one.name), f"{100 * one.value:.1f} %", interval, f"{one.n:,}")
    console.print(table)
    confused = [f"{c.true} taken for {c.predicted} ({c.count:,})" for c in most_confused(result, most=5)]
    if confused:
        console.print(f"Most often mistaken: {escape('; '.join(confused))}")


def _unreadable(report: Report, console: Console) -> None:
    if not report.unreadable:
        return
    console.print(f"[yellow]images left out because they could not be read: {len(report.unreadable)}[/yellow]")
    for one in report.unreadable[:LISTED]:
        console.print(f"  {escape(one.id)}: {escape(one.reason)}")
    if len(report.unreadable) > LISTED:
        console.print(f"  and {len(report.unreadable) - LISTED} more; the JSON file lists all")
