"""Findings of 3,955 real reports against what indexers wrote of them: ours, medspacy's rules alone, and keywords.

Indiana University's reports of chest X-rays, read in place from the installed torchxrayvision; MeSH's major terms are
the reference. The vocabulary was tuned on the reports with even numbers, by reading what it got wrong there; no text
with an odd number was looked at: these are the result. A finding counts as found if it is present; uncertain ones are
counted on their own. Medspacy's rules alone are ours without the cues that this library adds; keywords are the same
terms without any negation.
"""

import argparse
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from unicl.data.quarantine import Quarantine
from unicl.data.reports.files import reports
from unicl.data.reports.findings import Extractor
from unicl.data.reports.sections import Report
from unicl.data.reports.vocabulary import Vocabulary, pattern, vocabulary
from unicl.space import Finding
from unicl.use.label import Row, Settings, rows_of

MESH: Final[Mapping[str, str]] = {
    "No Finding": r"normal$",
    "Enlarged Cardiomediastinum": r"Mediastinum/(.*/)?(prominent|enlarged)",
    "Cardiomegaly": r"Cardiomegaly|Cardiac Shadow/enlarged",
    "Lung Opacity": r"Opacity|Airspace Disease|Infiltrate|Density(?!/(?!.*lung|retro))",
    "Lung Lesion": r"Nodule|Mass($|/)",
    "Edema": r"Pulmonary Edema|Pulmonary Congestion|Heart Failure",
    "Consolidation": r"Consolidation",
    "Pneumonia": r"Pneumonia",
    "Atelectasis": r"Pulmonary Atelectasis",
    "Pneumothorax": r"Pneumothorax|Hydropneumothorax|Hemopneumothorax",
    "Pleural Effusion": r"Pleural Effusion|Hydropneumothorax|Hemothorax|Hemopneumothorax",
    "Pleural Other": r"Thickening/pleura",
    "Fracture": r"Fractures, Bone",
    "Support Devices": r"Catheters, Indwelling|Implanted Medical Device|Tube, Inserted|Medical Device|Stents",
}
"""Which of MeSH's major terms, as they begin, mean a finding of CheXpert's."""
NEGATION: Final = re.compile(r"\b(?:no|not|without|negative|absen\w+|free|resol\w+|removed|clear\w*)\b", re.IGNORECASE)
"""Words that a negation error has in its sentence."""
HALVES: Final = ("tuned on", "held out")
SIDES: Final = ("unicl", "medspacy's rules alone", "keywords")


@dataclass(slots=True, kw_only=True)
class Score:
    """Counts of one finding over the reports of a half.

    A missed negation is a finding that MeSH lacks and whose every sentence has a negating word; a wrong one is a
    finding that MeSH has and that was called absent.
    """

    right: int = 0
    wrong: int = 0
    missed: int = 0
    missed_negations: int = 0
    wrong_negations: int = 0
    uncertain_in_mesh: int = 0
    uncertain_only: int = 0

    @property
    def precision(self) -> float:
        """How many of those found MeSH has."""
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        """How many of MeSH's were found."""
        return self.right / max(1, self.right + self.missed)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.right / max(1, 2 * self.right + self.wrong + self.missed)

    @property
    def negation_errors(self) -> int:
        """Negations that were missed, and findings that were negated wrongly."""
        return self.missed_negations + self.wrong_negations


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one side says of one finding in one report, and the sentences for it."""

    value: Finding
    sentences: tuple[str, ...]


def ours(row: Row) -> dict[str, Said]:
    """The findings of a row, with the sentences that say that they are present."""
    by: dict[str, list[str]] = {}
    for each in row.evidence:
        if each.mention.value is Finding.PRESENT:
            by.setdefault(each.mention.finding, []).append(each.sentence)
    return {name: Said(value=value, sentences=tuple(by.get(name, ()))) for name, value in row.findings}


def keywords(row: Row, words: Vocabulary) -> dict[str, Said]:
    """The same terms without negation: whatever is named is present, and nothing named is no finding."""
    found: dict[str, Said] = {}
    for terms in words.findings:
        expression = pattern(terms.terms)
        assert expression is not None
        lines = re.split(r"(?<=[.!?])\s+", row.text)
        named = tuple(line for line in lines if expression.search(line))
        value = Finding.PRESENT if named else Finding.UNMENTIONED
        found[terms.name] = Said(value=value, sentences=named)
    nothing = words.nothing
    assert nothing is not None
    others = pattern(nothing.others)
    named = [name for name, said in found.items() if name not in nothing.despite and said.sentences]
    free = not named and not (others and others.search(row.text))
    found[nothing.name] = Said(value=Finding.PRESENT if free else Finding.UNMENTIONED, sentences=())
    return found


def count(score: Score, said: Said, *, wanted: bool) -> None:
    """Add one report to the counts of one finding."""
    is_found = said.value is Finding.PRESENT
    score.right += wanted and is_found
    score.missed += wanted and not is_found
    score.wrong += is_found and not wanted
    score.wrong_negations += wanted and said.value is Finding.ABSENT
    if said.value is Finding.UNCERTAIN:
        score.uncertain_in_mesh += wanted
        score.uncertain_only += not wanted
    if is_found and not wanted and said.sentences:
        score.missed_negations += all(NEGATION.search(line) is not None for line in said.sentences)


def collection() -> tuple[Report, ...]:
    """The reports that were indexed, in the order of their numbers."""
    package = find_spec("torchxrayvision")
    if package is None or package.origin is None:
        raise SystemExit("the reports are those of torchxrayvision; run: pip install torchxrayvision")
    path = Path(package.origin).parent / "data" / "NLMCXR_reports.tgz"
    found = reports(str(path), quarantine=Quarantine(limit=0)).read()
    return tuple(sorted((each for each in found if "No Indexing" not in each.terms), key=number))


def number(report: Report) -> int:
    """The number in a report's name."""
    return int(Path(report.id).stem)


def measure(found: Sequence[Report], words: Vocabulary) -> dict[str, Any]:
    """All sides over both halves, and the time of ours."""
    rows, seconds = read(found, words)
    plain, _ = read(found, replace(words, cues=()))
    scores = {half: {side: {name: Score() for name in MESH} for side in SIDES} for half in HALVES}
    for report, row in rows.items():
        said = (ours(row), ours(plain[report]), keywords(row, words))
        for side, of in zip(SIDES, said, strict=True):
            for name, terms in MESH.items():
                wanted = any(re.match(terms, term) for term in report.terms)
                count(scores[HALVES[number(report) % 2]][side][name], of[name], wanted=wanted)
    sizes = Counter(HALVES[number(report) % 2] for report in rows)
    return {"reports": dict(sizes), "reports a CPU second": round(len(rows) / seconds), "scores": scores}


def read(found: Sequence[Report], words: Vocabulary) -> tuple[dict[Report, Row], float]:
    """The row of each report that has sentences, and the seconds of processor time that they took."""
    extractor, settings = Extractor(words), Settings(vocabulary=words)
    begun = time.process_time()
    rows = {report: row for report in found for row in rows_of(report, extractor, settings=settings)}
    return rows, time.process_time() - begun


def show(scores: Mapping[str, Mapping[str, Score]], console: Console) -> None:
    """Precision, recall, F1 and negation errors of all sides, by finding; and which are uncertain for ours."""
    table = Table(
        "finding", "in MeSH", "uncertain: in MeSH + not", *SIDES, caption="precision recall F1 negation errors"
    )
    for name in MESH:
        own = scores["unicl"][name]
        unsure = f"{own.uncertain_in_mesh} + {own.uncertain_only}"
        table.add_row(name, str(own.right + own.missed), unsure, *(cell(scores[side][name]) for side in SIDES))
    console.print(table)


def cell(score: Score) -> str:
    """Precision, recall, F1 and negation errors as text."""
    return f"{score.precision:.3f} {score.recall:.3f} {score.f1:.3f} {score.negation_errors:4d}"


def macro(scores: Mapping[str, Score]) -> float:
    """The mean F1 over the findings."""
    return sum(score.f1 for score in scores.values()) / len(scores)


def result(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What is written."""
    scores = measured["scores"]
    held = scores["held out"]
    errors = {side: sum(score.negation_errors for score in held[side].values()) for side in held}
    return {
        "load before": [round(average, 1) for average in os.getloadavg()],
        "versions": {name: version(name) for name in ("unicl", "medspacy", "spacy", "torchxrayvision")},
        "reports": measured["reports"],
        "reports a CPU second": measured["reports a CPU second"],
        "mean F1": {half: {side: round(macro(s), 4) for side, s in of.items()} for half, of in scores.items()},
        "negation errors, held out": errors,
        "scores": {
            half: {side: {name: described(score) for name, score in of.items()} for side, of in sides.items()}
            for half, sides in scores.items()
        },
        "rows": [
            {
                "what": "14 findings of 1,900 held-out reports against MeSH, mean F1",
                "ours": round(macro(held["unicl"]), 3),
                "peer": round(macro(held["keywords"]), 3),
                "peer name": "keywords",
                "ratio": round(macro(held["unicl"]) / macro(held["keywords"]), 2),
            },
            {
                "what": "negation errors on them",
                "ours": errors["unicl"],
                "peer": errors["keywords"],
                "peer name": "keywords",
                "ratio": round(errors["keywords"] / max(1, errors["unicl"]), 1),
            },
        ],
    }


def described(score: Score) -> dict[str, Any]:
    """One score as JSON."""
    rates = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
    return {**{name: round(value, 4) for name, value in rates.items()}, **asdict(score)}


def main() -> None:
    """Measure both sides and write ``results/findings.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "findings.json")
    wanted = parser.parse_args()
    measured = measure(collection(), vocabulary("chexpert"))
    written = result(measured)
    console = Console(width=180)
    for half, of in measured["scores"].items():
        console.print(f"{half}, {measured['reports'][half]:,} reports")
        show(of, console)
    console.print(f"{measured['reports a CPU second']:,} reports a CPU second; mean F1 {written['mean F1']}")
    wanted.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
