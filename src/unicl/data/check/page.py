"""The report as one HTML page that needs nothing else: pictures, charts and styles are inside."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2
from PIL import Image

from unicl.data.check.advice import language_list, percent, plural
from unicl.data.check.floor import FalseNegatives
from unicl.data.check.report import CheckReport, CopyGroup, Level, Ref
from unicl.data.check.terminal import gigabytes
from unicl.data.image import decode
from unicl.data.sources import Source
from unicl.errors import BadImage
from unicl.space import ImageSource

SIDE = 112
QUALITY = 78
PICTURES = 420
WORST_FIRST = (Level.PROBLEM, Level.LOOK, Level.OK)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart, in percent of its width and height, with the words shown under the pointer."""

    x: float
    width: float
    height: float
    words: str
    marked: bool = False


def page(report: CheckReport, *, sources: Sequence[Source]) -> str:
    """The HTML of ``report``; ``sources`` are those that were checked, to read at most `PICTURES` images again."""
    loader = jinja2.FunctionLoader(lambda name: (files("unicl.data") / "pages" / name).read_text(encoding="utf-8"))
    # A misspelt name in the page must be an error, not a gap.
    rules = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rules.filters.update(percent=percent, size=gigabytes, plural=plural)
    text = rules.get_template("check.html").render(
        report=report,
        pictures=_pictures(report, sources),
        class_bars=_class_bars(report),
        length_bars=_length_bars(report),
        dots=_dots(report),
        languages=language_list(report.captions),
        kinds=_kinds(report),
        batches=sorted({meeting.batch_size for meeting in report.meetings}),
        meetings=_meetings(report),
        groups=_groups(report),
        uneven=uneven(report),
        findings=sorted(report.findings, key=lambda finding: WORST_FIRST.index(finding.level)),
    )
    # A file name that is not UTF-8 carries lone surrogates, which no file can hold.
    return text.encode("utf-8", "replace").decode()


def thumbnail(image: ImageSource) -> str:
    """A ``data:`` address of a JPEG no larger than `SIDE`; empty if the image cannot be read."""
    try:
        pixels = decode(image)
    except (BadImage, OSError):
        return ""
    small = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _pictures(report: CheckReport, sources: Sequence[Source]) -> Mapping[Ref, str]:
    """The small pictures of all samples that the page shows."""
    wanted = dict.fromkeys(ref for refs in _shown(report) for ref in refs)
    kept = set(list(wanted)[:PICTURES])
    names = {ref.source for ref in kept}
    return {
        ref: thumbnail(sample.image)
        for source in sources
        if source.name in names
        for sample in source.samples
        if sample.image is not None and (ref := Ref(source.name, sample.id)) in kept
    }


def _shown(report: CheckReport) -> Iterator[Sequence[Ref]]:
    """The samples with a picture on the page, those that matter most first."""
    copies = report.copies
    for facts in (copies.near, copies.pixels, copies.files, copies.rows):
        yield from (group.refs for group in (*facts.label_examples, *facts.examples))
    yield from (size.examples for size in (*report.classes.largest, *report.classes.smallest))
    yield from (report.images.plain_examples, report.images.long_examples, report.images.tiny_examples)


def _class_bars(report: CheckReport) -> list[Bar]:
    sizes, count = report.classes.ranked, report.classes.count
    scale = math.log1p if uneven(report) else float
    return [
        Bar(
            x=100 * k / len(sizes),
            width=100 / len(sizes),
            height=max(1.0, 100 * scale(size) / scale(sizes[0])),
            words=f"class {int((k + 0.5) * count / len(sizes)) + 1:,} of {count:,}: {size:,}",
        )
        for k, size in enumerate(sizes)
    ]


def uneven(report: CheckReport) -> bool:
    """True if the class sizes need a logarithmic scale to be seen."""
    sizes = report.classes.ranked
    return bool(sizes) and sizes[0] > 100 * sizes[-1]


def _length_bars(report: CheckReport) -> list[Bar]:
    histogram = report.captions.histogram
    most = max((count for _, _, count in histogram), default=1)
    return [
        Bar(
            x=100 * k / len(histogram),
            width=100 / len(histogram),
            height=max(1.5, 100 * count / most) if count else 0.0,
            words=f"{low} to {high} tokens: {count:,}" if high > low else f"{low} tokens: {count:,}",
            marked=low > report.captions.context,
        )
        for k, (low, high, count) in enumerate(histogram)
    ]


def _dots(report: CheckReport) -> list[tuple[float, float, str]]:
    """Width and height of images on one logarithmic scale, in percent from the lower left."""
    sides = report.images.sides
    if not sides:
        return []
    low, high = (math.log(pick(side for pair in sides for side in pair)) for pick in (min, max))
    low, high = low - 0.15, high + 0.15
    place = [[100 * (math.log(side) - low) / (high - low) for side in pair] for pair in sides]
    return [(x, y, f"{w} x {h}") for (x, y), (w, h) in zip(place, sides, strict=True)]


def _kinds(report: CheckReport) -> list[tuple[str, int]]:
    kinds = report.kinds
    named = (
        ("image and label", kinds.image_label),
        ("image and caption", kinds.image_caption),
        ("image, label and caption", kinds.image_label_caption),
        ("image only", kinds.image_only),
        ("caption only", kinds.text_only),
        ("label only", kinds.label_only),
        ("nothing", kinds.nothing),
    )
    return [(name, count) for name, count in named if count]


def _meetings(report: CheckReport) -> dict[str, dict[int, FalseNegatives]]:
    keys = dict.fromkeys(meeting.key for meeting in report.meetings)
    return {key: {m.batch_size: m.numbers for m in report.meetings if m.key == key} for key in keys}


def _groups(report: CheckReport) -> list[tuple[str, str, tuple[CopyGroup, ...], int]]:
    """Title, explanation, groups and how many there are, of each kind of copies that has any."""
    copies = report.copies
    kinds = (
        ("files named by several rows", copies.rows),
        ("files with equal bytes", copies.files),
        ("equal pictures in different files", copies.pixels),
        ("near-duplicates", copies.near),
    )
    contradictions = [
        (f"Different labels: {name}", "One picture, several classes.", facts.label_examples, facts.labels_differ)
        for name, facts in kinds
        if facts.label_examples
    ]
    found = [
        (name.capitalize(), f"{facts.images:,} samples.", facts.examples, facts.groups)
        for name, facts in kinds[1:]
        if facts.examples
    ]
    return [*contradictions, *reversed(found)]
