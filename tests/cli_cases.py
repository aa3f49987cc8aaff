"""The command as a user types it, on a small run."""

import pytest

from unicl.cli import main

SMALL = [
    *("--image", "test_vit", "--image-size", "32", "--width", "32", "--batch", "12", "--steps", "3"),
    *("--set", "text.layers=1", "--set", "text.dim=32", "--set", "text.heads=2"),
]


def code(*arguments):
    """The exit status of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code


def small_run(data, out):
    """A run of the default recipe in three steps."""
    sources = ("--data", data[0], "--data", f"{data[1]}?text=title")
    assert code("train", "--recipe", "itl", *sources, "--out", out, *SMALL) == 0
    return out
