"""What all verbs say in the same words."""

from pathlib import Path
from typing import Any

from rich.console import Console

from unicl.errors import UserError


def needs(data: Any, example: str) -> None:
    """Raise `UserError` with an example if no data was named."""
    if not data:
        raise UserError(f"no data given; name a folder, table or tar, for example: {example}")


def shown(found: Any, out: Path | None) -> int:
    """Results as a table, and as a sheet if one is asked for."""
    from unicl.use.results import show
    from unicl.use.sheet import write

    show(found, Console())
    if out is not None:
        write(found, out)
        wrote(out)
    return 0


def write(path: Path, content: str) -> None:
    """Write a page and say so; raises `UserError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    wrote(path)


def wrote(path: Path | str, what: str = "") -> None:
    """Say on standard error what has been written where."""
    Console(stderr=True, highlight=False, markup=False).print(f"wrote {what} in {path}" if what else f"wrote {path}")
