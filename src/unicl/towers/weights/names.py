"""A layout as rules between our names of tensors and another project's, read both ways and complete both ways."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from unicl.errors import UserError


@dataclass(frozen=True, slots=True)
class Change:
    """How a tensor differs between two layouts: ``to_ours(theirs, like)``, where ``like`` has our shape, and back."""

    to_ours: Callable[[Tensor, Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


def _row(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(like.shape) if value.ndim == 1 and value.numel() == like.numel() else value


def _flat(value: Tensor, like: Tensor) -> Tensor:
    kept = value.shape[: like.ndim]
    return value.reshape(kept) if value.ndim == _PICTURES and value.numel() == kept.numel() else value


_PICTURES: Final = 4

SAME: Final = Change(lambda value, _like: value, lambda value: value)
TURNED: Final = Change(lambda value, _like: value.T if value.ndim == 2 else value, lambda value: value.T)
"""A matrix that they keep with inputs first."""
ROW: Final = Change(_row, lambda value: value.flatten())
"""Ours ``(1, 1, F)``, theirs ``(F,)``."""
TABLE: Final = Change(lambda value, like: value[(None,) * (like.ndim - value.ndim)], lambda value: value.flatten(0, -2))
"""Ours ``(1, P, F)``, theirs ``(P, F)``."""
POINT: Final = Change(_flat, lambda value: value[(...,) + (None,) * (_PICTURES - value.ndim)])
"""Ours ``(D, F)`` or ``(D, F, 1)``, theirs the same matrix for every place of a picture, ``(D, F, 1, 1)``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``ours`` matches the whole of our name; ``theirs`` is what it expands to, ``\\1`` and all.

    A ``theirs`` with ``{q,k,v}`` (or two names, or more) names the tensors that ours is the concatenation of; one that
    ends with ``#q``, ``#k`` or ``#v`` names a tensor of which ours is that third.
    """

    ours: str
    theirs: str
    change: Change = SAME


@dataclass(frozen=True, slots=True)
class Unused:
    """Entries of theirs that no tower of ours holds, by a pattern of their whole name, and why that is right."""

    theirs: str
    why: str


Rules = Sequence[Rule]


def to_ours(
    theirs: Mapping[str, Tensor],
    *,
    wanted: Mapping[str, Tensor],
    rules: Rules,
    unused: Sequence[Unused] = (),
    source: str,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of ``wanted`` (names and shapes, best on the meta device) out of theirs, and notes for people.

    Every entry on both sides is used, or explained by ``unused``: then a note counts it. Raises `UserError` naming
    each missing, unexpected or wrongly shaped entry in their words.
    """
    named = {key: _rule_of(key, rules, source=source) for key in wanted}
    used = {part for name, _ in named.values() for part in _parts(name)}
    left = sorted(set(theirs) - used)
    explained = {key: why for key in left if (why := _why(key, unused)) is not None}
    missing, unexpected = sorted(used - set(theirs)), [key for key in left if key not in explained]
    if missing or unexpected:
        raise UserError(mismatch(source, missing=missing, left=unexpected))
    found = {
        key: _found(theirs, name, change, like=wanted[key], source=source) for key, (name, change) in named.items()
    }
    _check_shapes(found, wanted, {key: name for key, (name, _) in named.items()}, source=source)
    return found, _notes(explained)


def to_theirs(ours: Mapping[str, Tensor], *, rules: Rules, source: str) -> dict[str, Tensor]:
    """Our tensors under their names; raises `UserError` if their layout has no place for one."""
    named: dict[str, Tensor] = {}
    for key, value in ours.items():
        name, change = _rule_of(key, rules, source=source)
        parts = _parts(name) if "{" in name else [name]
        pieces = value.chunk(len(parts)) if len(parts) > 1 else (value,)
        named |= {part: change.to_theirs(piece).contiguous() for part, piece in zip(parts, pieces, strict=True)}
    wholes = dict.fromkeys(name.partition("#")[0] for name in named)
    return {
        name: named[name] if name in named else torch.cat([named[f"{name}#{third}"] for third in "qkv"])
        for name in wholes
    }


def mismatch(source: str, *, missing: Iterable[str], left: Iterable[str]) -> str:
    """One line about a checkpoint that does not fit: what it lacks, what it has that nothing explains."""
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for kind, names in (("missing", list(missing)), ("unexpected", list(left)))
        if names
    ]
    fix = "nothing was loaded; a checkpoint is taken whole or not at all"
    return f"{source} does not fit the towers that it describes: {' and '.join(parts)}; {fix}"


def shapes_differ(source: str, name: str, *, theirs: Sequence[int], ours: Sequence[int]) -> str:
    """One line about a tensor of another shape."""
    return (
        f"{source} does not fit: {name} is {tuple(theirs)} there, {tuple(ours)} here; use the model name, width and "
        "sizes that the weights were made with"
    )


def _rule_of(key: str, rules: Rules, *, source: str) -> tuple[str, Change]:
    for rule in rules:
        if match := re.fullmatch(rule.ours, key):
            return match.expand(rule.theirs), rule.change
    raise UserError(f"{source} has no place for {key!r}")


def _parts(name: str) -> list[str]:
    """Their names that one of ours is made of."""
    if found := re.search(r"\{(\w+(?:,\w+)+)\}", name):
        return [name[: found.start()] + part + name[found.end() :] for part in found.group(1).split(",")]
    return [name.partition("#")[0]]


def _why(key: str, unused: Sequence[Unused]) -> str | None:
    return next((rule.why for rule in unused if re.fullmatch(rule.theirs, key)), None)


def _found(theirs: Mapping[str, Tensor], name: str, change: Change, *, like: Tensor, source: str) -> Tensor:
    parts = _parts(name)
    if len(parts) > 1:
        piece = like.new_empty(len(like) // len(parts), *like.shape[1:])
        pieces = {part: change.to_ours(theirs[part], piece) for part in parts}
        _check_shapes(pieces, dict.fromkeys(parts, piece), {part: part for part in parts}, source=source)
        return torch.cat(list(pieces.values()))
    whole, _, third_name = name.partition("#")
    value = theirs[whole]
    if third_name and value.ndim and len(value) % 3 == 0:
        value = value.chunk(3)["qkv".index(third_name)]
    return change.to_ours(value, like)


def _check_shapes(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Mapping[str, str], *, source: str
) -> None:
    for key, value in found.items():
        if value.shape != wanted[key].shape:
            name = names[key].partition("#")[0]
            raise UserError(shapes_differ(source, name, theirs=value.shape, ours=wanted[key].shape))


def _notes(explained: Mapping[str, str]) -> tuple[str, ...]:
    counts: dict[str, list[str]] = {}
    for key, why in explained.items():
        counts.setdefault(why, []).append(key)
    return tuple(
        f"left out {len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}): {why}"
        for why, keys in counts.items()
    )
