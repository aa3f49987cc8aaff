"""The verb that says what data speaks of: concepts."""

from pathlib import Path

from rich.console import Console

from unicl.cli.say import needs, wrote


def concepts(*data: str, least: int = 6, out: Path | None = None, workers: int = 0) -> int:
    """Count the concepts that the captions of data name, as UniCL's Table 1 does: nouns, images of each, vocabulary.

    English is read by spaCy and Chinese by jieba (`pip install 'unicl[words]'`); each class of labelled data is a
    concept as well. With --out, what was read is kept there, and a second run goes on where the first one stopped.

    Examples: `unicl concepts captions.csv`; `unicl concepts captions.csv photos/ --out concepts/ --least 6`

    Parameters
    ----------
    data
        Sources to count, each by itself and all together.
    least
        How often a noun has to be seen: more than five times, as UniCL counts.
    out
        A folder for concepts.csv, concepts.json and concepts.html, a page with plots.
    workers
        Processes that read captions; as many as processors if 0.
    """
    import os

    from unicl.data.sources import load_all
    from unicl.use.concept_report import save, show
    from unicl.use.concepts import count_concepts

    needs(data, "unicl concepts captions.csv")
    cache = None if out is None else out / "words.db"
    sources = load_all(data)
    counted = count_concepts(sources, least=least, cache=cache, workers=workers or os.cpu_count() or 1, progress=True)
    show(counted, console=Console(), least=least)
    if out is not None:
        save(counted, out, least=least)
        wrote(out, "concepts.csv, .json and .html")
    return 0
