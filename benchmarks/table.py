"""All results as one table in the README: what was measured, ours beside a peer's, and what was wanted.

Every ``results/*.json`` may have a list ``rows`` of objects with ``what``, ``ours``, ``peer``, ``peer name``, ``ratio``
and ``wanted``; a value that there is not is missing or null. The table stands between two comments of the README.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEAD = ("what", "ours", "peer", "ratio", "wanted", "script")


def rows_of(path: Path) -> list[tuple[str, ...]]:
    """The rows of one result, ready to print; none if it has none. Raises ValueError for a row without a name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content.get("rows") if isinstance(content, dict) else None
    return [row_of(row, script=path.stem) for row in rows] if isinstance(rows, list) else []


def row_of(row: Mapping[str, Any], *, script: str) -> tuple[str, ...]:
    """One row in the order of `HEAD`; a ratio that reaches what was wanted is bold."""
    if not row.get("what"):
        raise ValueError(f"a row of {script}.json does not say what it measured: {dict(row)}")
    peer = " ".join(part for part in (shown(row.get("peer")), row.get("peer name") or "") if part)
    ratio, wanted = row.get("ratio"), row.get("wanted")
    reached = isinstance(ratio, int | float) and isinstance(wanted, int | float) and ratio >= wanted
    marked = f"**{shown(ratio)}**" if reached else shown(ratio)
    link = f"[{script}.py](benchmarks/{script}.py)"
    return (str(row["what"]), shown(row.get("ours")), peer, marked, shown(wanted), link)


def shown(value: Any) -> str:
    """A number with three digits, a text as it is, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown."""
    lines = [HEAD, ("---", *("---:",) * 4, "---"), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def placed(page: str, content: str) -> str:
    """The page with the content between the two comments. Raises ValueError if they are not there once, in order."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page needs {BEGIN} and, after it, {END}, once each")
    return page[: page.index(BEGIN) + len(BEGIN)] + "\n" + content + "\n" + page[page.index(END) :]


def main() -> int:
    """Rewrite the table; the exit status is 1 if nothing has been measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE.parent / "README.md")
    asked = parser.parse_args()
    rows = [row for path in sorted(asked.results.glob("*.json")) for row in rows_of(path)]
    if not rows:
        print(f"no rows in {asked.results}: run the other scripts first", file=sys.stderr)
        return 1
    asked.page.write_text(placed(asked.page.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    print(f"{len(rows)} rows in {asked.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
