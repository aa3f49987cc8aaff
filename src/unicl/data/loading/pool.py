"""Processes that share work: they end with the one that started them, and the end of one of them is said in words."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait

from unicl.errors import UserError


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes for what is submitted; raises `UserError` if one of them is ended from outside."""
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent) as found:
            yield found
    except BrokenProcessPool as error:
        raise UserError(
            "a process that shared the work was ended from outside, perhaps for want of memory; run it again, with "
            "fewer --workers if memory is short",
            code=1,
        ) from error


def _end_with_parent() -> None:
    """A parent that is killed tells its processes nothing, and they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_outlive, args=(parent.sentinel,), daemon=True).start()


def _outlive(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
