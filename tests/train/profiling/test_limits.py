from io import StringIO

import pytest
from rich.console import Console

from unicl.train.profiling.flops import Peak
from unicl.train.profiling.limits import Report


def report(**seconds):
    parts = ("input", "image_tower", "text_tower", "objective", "backward", "communication", "optimiser", "rest")
    times = {name.replace("_", " "): seconds.get(name, 0.01) for name in parts}
    return Report(seconds=times, steps=3, batch=64, flops=2 * 10**9, peak=Peak(flops=1e11, source="a data sheet"))


@pytest.mark.parametrize(
    ("part", "limit", "help"),
    [
        ("input", "input limits: 93% of a step waits for images", "--resize 256"),
        ("image_tower", "towers limit: 95%", "--lock-image"),
        ("backward", "towers limit", "--precision bf16"),
        ("objective", "loss limits", "--keep-mb"),
        ("communication", "communication limits", "--chunk"),
        ("optimiser", "optimiser limits", "--batch"),
        ("rest", "rest limits", "--save-every"),
    ],
)
def test_the_largest_share_limits_and_gets_an_advice(part, limit, help):
    advice = report(**{part: 1.0}).advice
    assert advice.startswith(limit)
    assert help in advice


def test_speed_and_utilisation_follow_from_the_seconds():
    found = report(input=0.03, backward=0.11)
    assert found.step == pytest.approx(0.2)
    assert found.mfu == pytest.approx(0.1)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert "320.0 samples/s" in found.totals()


def test_the_page_and_the_table_hold_every_part():
    found = report(objective=0.5)
    console = Console(width=120, record=True, file=StringIO())
    console.print(found.table())
    shown = console.export_text()
    for part in found.seconds:
        assert f"| {part} |" in found.page()
        assert part in shown
    assert found.advice in found.page()
