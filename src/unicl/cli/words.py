"""The verbs that read texts: label."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from unicl.cli.say import wrote


def label(
    data: str,
    *,
    out: Path,
    vocabulary: str = "chexpert",
    findings: str | None = None,
    by: Literal["report", "sentence"] = "report",
    least_words: int = 1,
    sections: str = "findings,impression",
    workers: int = 0,
    max_bad: int = 100,
) -> int:
    """Write what reports say of findings: 1 present, 0 absent, -1 uncertain, blank not mentioned.

    Beside the table stands what decided each cell, with the sentence and its place: NAME.evidence.csv.

    Examples: `unicl label reports/ --vocabulary chexpert --out findings.csv`;
    `unicl label 'studies.csv?text=report' --vocabulary mine.yaml --by sentence --out sentences.csv`

    Parameters
    ----------
    data
        A folder of .txt or .xml reports, one of these, a .tgz of them, or a table with a column of texts.
    out
        A new .csv; `unicl train --data` reads it as texts with findings.
    vocabulary
        chexpert (14 findings of chest X-rays), or a YAML file of findings and their terms.
    findings
        Only these of the vocabulary, with commas between.
    by
        One row a report, or one a sentence.
    least_words
        With --by sentence, leave out sentences of fewer words; MedCLIP's code: 5.
    sections
        The sections that are read; a report that has none of them is read whole, but for what was asked and done.
    workers
        Processes; 0 is as many as pay for themselves.
    max_bad
        How many files that cannot be read are left out before the run ends.
    """
    from unicl.data.reports.sections import section_name
    from unicl.data.reports.vocabulary import vocabulary as load
    from unicl.use.label import Settings, evidence_path, show
    from unicl.use.label import label as run

    words = load(vocabulary)
    words = words if findings is None else words.only(findings.split(","))
    asked = tuple(section_name(name) for name in sections.split(",") if name.strip())
    settings = Settings(vocabulary=words, by=by, least_words=least_words, sections=asked)
    summary = run(data, out, settings=settings, workers=workers, max_bad=max_bad, progress=True)
    show(summary, Console())
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    for note in summary.notes():
        say(note)
    wrote(out, f"{summary.rows:,} rows of {summary.reports - len(summary.silent):,} reports")
    wrote(evidence_path(out))
    return 0
