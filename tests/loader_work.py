"""Makers of batches for tests of the loader; in a module of their own because the loader process imports it."""

import os
import signal
import threading

import torch

from unicl.data.loading.team import Made
from unicl.errors import UserError
from unicl.space import Batch, Keys


def batch(images, *, step):
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(
        images=images,
        image_keys=Keys.empty(len(images)),
        tokens=torch.full((2, 3), step),
        token_mask=torch.ones(2, 3, dtype=torch.bool),
        text_index=none,
        text_keys=Keys.empty(0),
        text_counts=torch.zeros(0),
        ids=(f"step {step}",),
    )


class Counting:
    """Batches of four images that are all the number of their position; ``at`` is a position where ``fault`` comes."""

    shape = (1, 4, 3, 2, 2)

    def __init__(self, fault="", at=10):
        self.fault, self.at = fault, at

    def positions(self, step):
        return range(4 * step, 4 * step + 4)

    def name(self, position):
        return f"numbers/{position}"

    def draw(self, position, *, out):
        if position == self.at and self.fault:
            getattr(self, self.fault)()
        out.fill_(position % 251)
        return position

    def collate(self, step, *, drawn, out):
        bad = tuple((f"numbers/{position}", "seven") for position in drawn if position % 7 == 0)
        return Made(batch=batch(out[0, : len(drawn)], step=step), bad=bad)

    def hang(self):
        threading.Event().wait()

    def fail(self):
        raise ZeroDivisionError("nothing to divide by")

    def complain(self):
        raise UserError("the table has gone", code=2)

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self):
        os._exit(3)


class CannotStart(Counting):
    """What a loader process cannot read."""

    def __setstate__(self, state):
        raise ValueError("of another version")
