"""Which findings images and texts have, and what is known of each."""

from collections import Counter
from collections.abc import Iterable

from unicl.data.check.report import KnownFinding
from unicl.space import Finding, Sample

ORDER = (Finding.PRESENT, Finding.UNCERTAIN, Finding.ABSENT, Finding.UNMENTIONED)


def known_findings(samples: Iterable[Sample]) -> tuple[KnownFinding, ...]:
    """Count, for each finding in the order of the tables, the images and the texts of which each thing is known."""
    counts: Counter[tuple[str, bool, Finding]] = Counter()
    names: dict[str, None] = {}
    for sample in samples:
        sides = {side for side, has in ((True, sample.image is not None), (False, bool(sample.captions))) if has}
        for name, finding in sample.findings:
            names[name] = None
            counts.update((name, side, finding) for side in sides)

    def of(name: str, *, image: bool) -> tuple[int, int, int, int]:
        present, uncertain, absent, unmentioned = (counts[name, image, finding] for finding in ORDER)
        return present, uncertain, absent, unmentioned

    return tuple(KnownFinding(name=name, images=of(name, image=True), texts=of(name, image=False)) for name in names)
