"""Evaluation sets in which every image shows one finding: the layouts 5x200 and 8x200, and others by their numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from unicl.errors import UserError, suggest
from unicl.space import Finding, Sample

LAYOUTS: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType(
    {
        5: ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
        8: (
            *("No Finding", "Atelectasis", "Cardiomegaly", "Edema", "Fracture", "Pleural Effusion", "Pneumonia"),
            "Pneumothorax",
        ),
    }
)
"""The classes of CheXpert 5x200 (GLoRIA, MedCLIP) and of CheXpert 8x200 (ConVIRT's released retrieval set)."""
EVERY: Final = "all"

_FORM: Final = re.compile(r"(?:(?P<layout>\d+)x)?(?P<most>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which images are wanted: those of ``classes`` (None: of all findings there are), ``most`` of each (None: all)."""

    classes: tuple[str, ...] | None = None
    most: int | None = None


def choice_of(only: str) -> Choice:
    """What ``only=`` says: ``all``, ``200`` of each finding, or a layout with its own findings, ``5x200``.

    Raises `UserError` for anything else.
    """
    if only == EVERY:
        return Choice()
    found = _FORM.fullmatch(only)
    layout = None if found is None or found["layout"] is None else int(found["layout"])
    if found is None or int(found["most"]) < 1 or (layout is not None and layout not in LAYOUTS):
        known = " and ".join(f"{size}x200" for size in LAYOUTS)
        raise UserError(
            f"only={only!r} says no number of images of each finding; write only=200, only=all, or a layout: {known} "
            "(or as many others of their findings, such as 5x50)"
        )
    return Choice(classes=None if layout is None else LAYOUTS[layout], most=int(found["most"]))


def exclusive(samples: Sequence[Sample], choice: Choice, *, seed: int, where: str) -> tuple[Sample, ...]:
    """The images that show exactly one finding, labelled by it, as many of each class as the choice says.

    Of an image's findings one is present and all others are absent or not mentioned; one that is uncertain leaves it
    out (CheXpert 5x200: uncertain cells out, blank ones 0). As many as wanted are drawn by ``seed``, class by class,
    without one twice; they keep the order of the data. GLoRIA's and MedCLIP's own draws had no seed and cannot be
    repeated. Raises `UserError` if there are no findings, a class is none of them, or has too few images.
    """
    known = tuple(dict.fromkeys(name for sample in samples for name, _ in sample.findings))
    if not known:
        raise UserError(
            f"only= needs findings, and {where} has none; name their columns with findings=A,B or findings=*"
        )
    classes = known if choice.classes is None else choice.classes
    strange = next((name for name in classes if name not in known), None)
    if strange is not None:
        raise UserError(
            f"{where} has no finding {strange!r}{suggest(strange, known)}, which only= asks for; "
            f"it has {', '.join(known)}"
        )
    members: dict[str, list[int]] = {name: [] for name in classes}
    for row, sample in enumerate(samples):
        name = single(sample)
        if sample.image is not None and name in members:
            members[name].append(row)
    chosen = _drawn(members, most=choice.most, seed=seed, where=where)
    return tuple(replace(samples[row], labels=(name,)) for row, name in sorted(chosen.items()))


def single(sample: Sample) -> str | None:
    """The finding that a sample shows, if it shows exactly one and none is uncertain."""
    said = [known for _, known in sample.findings]
    if said.count(Finding.PRESENT) != 1 or Finding.UNCERTAIN in said:
        return None
    return next(name for name, known in sample.findings if known == Finding.PRESENT)


def _drawn(members: Mapping[str, Sequence[int]], *, most: int | None, seed: int, where: str) -> dict[int, str]:
    few = {name: len(rows) for name, rows in members.items() if len(rows) < (1 if most is None else most)}
    if few and most is None:
        # Findings that never stand alone are no classes of this set.
        members = {name: rows for name, rows in members.items() if rows}
    if few and (most is not None or not members):
        said = ", ".join(f"{name} {count:,}" for name, count in few.items())
        wanted = "some" if most is None else f"{most:,}"
        raise UserError(
            f"{where} has too few images that show one finding alone ({wanted} of each wanted): {said}; ask for fewer "
            "with only=N, for other findings with findings=A,B, or give more data"
        )
    rng = np.random.default_rng(seed)
    return {
        row: name
        for name, rows in members.items()
        for row in (rows if most is None else rng.choice(rows, most, replace=False).tolist())
    }
