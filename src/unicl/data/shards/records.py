"""The json member of a shard that `unicl shard` wrote: a sample as it was in its source, and back."""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from unicl.data.formats.cells import Labels
from unicl.data.formats.rows import Group, Reading, parse_object
from unicl.errors import UserError
from unicl.space import Finding, Findings, Sample

MANIFEST: Final = "shards.json"
_MARK: Final = b'{"unicl": 1, '
"""How every record begins, so that a shard says itself how it is read, in any folder."""


def record(sample: Sample, *, width: int = 0, height: int = 0) -> bytes:
    """A sample without its image as one JSON object; 0 pixels are those of no image."""
    fields = {
        "unicl": 1,
        "id": sample.id,
        "namespace": sample.namespace,
        "captions": sample.captions,
        "labels": sample.labels,
        **({"findings": dict(sample.findings)} if sample.findings else {}),
        **({"patient": sample.patient} if sample.patient else {}),
        "width": width,
        "height": height,
    }
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a name that is not UTF-8 carries lone surrogates, which only escapes can hold
        return json.dumps(fields).encode()


def is_record(group: Group) -> bool:
    """Whether the members of a sample were written by `unicl shard`."""
    return group.fields.get("json", b"").startswith(_MARK)


def recorded_samples(groups: Iterable[Group], reading: Reading) -> Iterator[Sample]:
    """The samples of records, as they were; ``namespace=`` and ``names=`` of the source win over what is written.

    An id that comes again, in shards of two jobs, is replaced by the name of the member, which is unique.
    """
    reading.ledger.columns.update(text="captions", label="labels")
    labels = Labels(reading.names, where=reading.name)
    seen: set[str] = set()
    known = reading.spec.patient != ""
    for group in groups:
        fields = parse_object(group.fields["json"].decode("utf-8", "replace"), where=f"{group.stem}.json")
        id = _text(fields, "id", group=group)
        id = group.id if id in seen else id
        seen.add(id)
        own = reading.spec.namespace
        named = (labels.named(label, place=group.id) for label in _texts(fields, "labels", group=group))
        yield Sample(
            id=id,
            image=group.image,
            captions=_texts(fields, "captions", group=group),
            labels=tuple(dict.fromkeys(named)),
            namespace=_text(fields, "namespace", group=group) if own is None else own,
            findings=_findings(fields, group=group),
            others=group.others,
            patient=_text(fields, "patient", group=group) if "patient" in fields and known else "",
        )


def unfinished(folder: Path) -> str | None:
    """What to tell about a folder whose shards are not all there yet."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["finished"]:
            return None
        return (
            f"{folder.name} is not finished: its {len(manifest['shards']):,} shards hold a part of the "
            f"{manifest['total']:,} samples; the same `unicl shard` again writes the rest"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(fields: dict[str, object], name: str, *, group: Group) -> str:
    value = fields.get(name)
    if isinstance(value, str):
        return value
    raise UserError(f"{group.stem}.json begins as a record of unicl shard, but its {name!r} is no text: write it again")


def _findings(fields: dict[str, object], *, group: Group) -> Findings:
    value = fields.get("findings", {})
    try:
        return _shared(tuple(dict(value).items()))  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{group.stem}.json begins as a record of unicl shard, but its 'findings' are none: write it again"
        ) from error


@lru_cache(maxsize=1 << 16)
def _shared(findings: tuple[tuple[str, int], ...]) -> Findings:
    """One object for all samples of which the same is known."""
    return tuple((name, Finding(known)) for name, known in findings)


def _texts(fields: dict[str, object], name: str, *, group: Group) -> tuple[str, ...]:
    value = fields.get(name)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise UserError(
        f"{group.stem}.json begins as a record of unicl shard, but its {name!r} is no list of texts: write it again"
    )
