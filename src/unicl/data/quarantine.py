"""Samples that could not be used: left out, counted and listed, up to a limit."""

import json
import threading
from pathlib import Path

from unicl.errors import UserError


class Quarantine:
    """The list of samples that could not be read, kept in a JSONL file; thread-safe.

    ``limit`` is the number of distinct samples that may be left out before `UserError` ends the work.
    """

    def __init__(self, *, limit: int, path: Path | None = None) -> None:
        self.limit = limit
        self.path = path
        self.reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self.reasons.update(_entry(line))

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, id: str, *, reason: str) -> None:
        """Put a sample on the list; raises `UserError` over the limit."""
        with self._lock:
            if id in self.reasons:
                return
            self.reasons[id] = reason
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"id": id, "reason": reason}, ensure_ascii=False) + "\n")
        if len(self.reasons) > self.limit:
            raise UserError(self._too_many(), code=1)

    def _too_many(self) -> str:
        first = "\n".join(f"  {id}: {reason}" for id, reason in list(self.reasons.items())[:5])
        where = f"; all are listed in {self.path}" if self.path is not None else ""
        return (
            f"{len(self.reasons)} samples cannot be read, more than --max-bad {self.limit} allows{where}. The first:\n"
            f"{first}\nRemove them, mend them, or allow more with --max-bad."
        )


def _entry(line: str) -> dict[str, str]:
    try:  # the last line may be half written if the process was killed
        entry = json.loads(line)
        return {entry["id"]: entry["reason"]}
    except (ValueError, KeyError):
        return {}
