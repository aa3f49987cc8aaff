"""The report as one HTML page that needs nothing else: styles, plots and pictures are inside."""

from collections.abc import Iterator, Mapping
from importlib.resources import files

import jinja2

from unicl.data.check.page import thumbnail
from unicl.evaluate.plots import class_plot, confusion_plot, rank_plot
from unicl.evaluate.report import Report, Result, Score, figure, most_confused, shown
from unicl.space import ImageSource

HEADLINES = (
    *("zeroshot/top1", "retrieval/mean_recall", "probe/top1", "knn/features/k5/top1", "i2t/r1", "t2i/r1", "t2t/r1"),
    *("i2i/r1", "similarity/mean", "composed/composed/r1", "languages/mean_recall"),
    *("linear/top1", "svm/map"),
)


def to_html(report: Report) -> str:
    """The page; it reads the images of the mistakes again to show them small."""
    loader = jinja2.FunctionLoader(lambda name: (files("unicl.evaluate") / "pages" / name).read_text(encoding="utf-8"))
    # A misspelt name in the page must be an error, not a gap.
    rules = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rules.filters.update(figure=figure, shown=shown)
    text = rules.get_template("report.html").render(
        report=report,
        headlines=_headlines(report),
        plots={result.task: _plots(result) for result in report.results},
        confused={result.task: most_confused(result, most=12) for result in report.results},
        pictures=_pictures(report),
    )
    # A file name that is not UTF-8 carries lone surrogates, which no file can hold.
    return text.encode("utf-8", "replace").decode()


def _headlines(report: Report) -> list[tuple[str, Score]]:
    found = [(result, score) for result in report.results for score in result.scores if score.key in HEADLINES]
    return [(result.title, score) for result, score in found]


def _plots(result: Result) -> Mapping[str, str]:
    plots = {}
    if result.ranks:
        plots["ranks"] = rank_plot(result)
    if result.classes:
        plots["classes"] = class_plot(result)
    if result.confusion:
        plots["confusion"] = confusion_plot(result)
    return plots


def _pictures(report: Report) -> Mapping[ImageSource, str]:
    """The small pictures of all mistakes, each image once."""
    return {image: thumbnail(image) for image in dict.fromkeys(_shown_images(report))}


def _shown_images(report: Report) -> Iterator[ImageSource]:
    for mistake in (one for result in report.results for several in result.mistakes.values() for one in several):
        for image in (mistake.image, mistake.wanted.image, *(answer.image for answer in mistake.found)):
            if image is not None:
                yield image
