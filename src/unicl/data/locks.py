"""One process at a time: locks that end with their process, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder, made if it is not there, against other processes that ask for it in this way.

    Raises BlockingIOError if another one has it and ``wait`` is off; where the system has no such locks, goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        exclusive(handle, wait=wait)
        yield
    finally:
        os.close(handle)


def exclusive(handle: int, *, wait: bool = True) -> None:
    """Lock an open file until it is closed; raises BlockingIOError if another has it and ``wait`` is off."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a disk without locks
        pass
