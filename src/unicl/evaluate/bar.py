"""The progress bar of long steps, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(what: str, *, total: int, shown: bool, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """A bar that goes away when it is done; gives the function that moves it by a number of items."""
    columns = (TextColumn(f"[bold]{what}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    console = console or Console(stderr=True)
    with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.advance(task, done)
