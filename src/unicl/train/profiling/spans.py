"""Stretches of time as pairs of their ends: united, cut with each other, measured."""

from collections.abc import Iterable

Span = tuple[float, float]


def united(spans: Iterable[Span]) -> list[Span]:
    """The same time in stretches that do not touch, in order."""
    found: list[Span] = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found


def shared(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The time that both hold."""
    left, right = united(spans), united(others)
    found: list[Span] = []
    a = b = 0
    while a < len(left) and b < len(right):
        first, end = max(left[a][0], right[b][0]), min(left[a][1], right[b][1])
        if first < end:
            found.append((first, end))
        if left[a][1] < right[b][1]:
            a += 1
        else:
            b += 1
    return found


def length(spans: Iterable[Span]) -> float:
    """How long any of them is there."""
    return sum(end - first for first, end in united(spans))
