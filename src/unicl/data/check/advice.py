"""From the numbers to words: what is fine, what deserves a look, what stops training, and which recipe fits."""

from collections.abc import Iterator

from unicl.data.check.report import (
    Captions,
    CheckReport,
    Classes,
    CopyFacts,
    Finding,
    Kinds,
    KnownFinding,
    Level,
    Meeting,
)

MEET = 0.05  # of the rows of a batch: below it, equal texts hardly matter
CUT = 0.01
UNEVEN = 100
NAMED = 3


def recipe(
    kinds: Kinds,
    classes: Classes,
    *,
    captions: Captions,
    known: tuple[KnownFinding, ...] = (),
    meetings: tuple[Meeting, ...],
    batch_size: int,
) -> tuple[str, str]:
    """The recipe that fits the data, and why; no recipe if there is nothing that training could tell apart."""
    labelled, captioned = kinds.image_label + kinds.image_label_caption, kinds.image_caption + kinds.image_label_caption
    by_class, by_caption = labelled > 0 and classes.count > 1, captioned > 0 and captions.distinct > 1
    if by_class and by_caption:
        return "itl", "captions and labels: captions are compared on the whole vector, classes on its first part"
    if by_class:
        return "unicl", "labels only: every image of a class belongs to the class text, and none is pushed away from it"
    if by_caption:
        return _for_captions(meetings, batch_size=batch_size)
    if any(any(each.images) and any(each.texts) for each in known):
        return "medclip", "images and texts with findings, which match them without pairs"
    if not labelled and not captioned:
        return "", "no image has a caption or a label"
    return "", " and ".join(_one_of_each(labelled=labelled, captioned=captioned))


def findings(report: CheckReport) -> tuple[Finding, ...]:
    """One line per thing worth saying, in the order a reader would ask."""
    parts = (_samples, _classes, _known, _images, _copies, _captions, _meetings, _verdict)
    return tuple(finding for part in parts for finding in part(report))


def _for_captions(meetings: tuple[Meeting, ...], *, batch_size: int) -> tuple[str, str]:
    meeting = next(m for m in meetings if m.key == "caption" and m.batch_size == batch_size)
    if meeting.numbers.share <= MEET:
        return "clip", "captions only, and equal ones hardly ever meet in a batch"
    share = f"{percent(meeting.numbers.share)} of the rows of a batch of {meeting.numbers.rows:,}"
    return "itl", f"captions only, but {share} meet their own caption on another image; itl counts equal texts as equal"


def _one_of_each(*, labelled: int, captioned: int) -> Iterator[str]:
    if labelled:
        yield "all labelled images are of one class"
    if captioned:
        yield "all captions are the same text"


def _samples(report: CheckReport) -> Iterator[Finding]:
    kinds = report.kinds
    captioned, labelled = kinds.image_caption + kinds.image_label_caption, kinds.image_label + kinds.image_label_caption
    both = f", {kinds.image_label_caption:,} with both" if kinds.image_label_caption else ""
    text = f"{kinds.samples:,} samples: {labelled:,} images with a label, {captioned:,} with a caption{both}"
    yield Finding(level=Level.OK, topic="samples", text=text)
    if kinds.nothing:
        yield _look("samples", f"{kinds.nothing:,} samples have neither image nor text", advice="they are left out")
    if kinds.image_only and kinds.image_only < kinds.samples and not report.known:
        text = f"{kinds.image_only:,} images have neither caption nor label"
        yield _look("samples", text, advice="no pair can be made of them; check the text column and file names")
    if report.batch_size > kinds.samples:
        text = f"a batch of {report.batch_size:,} is more than the {kinds.samples:,} samples"
        yield _look("samples", text, advice="use a smaller batch, or a row meets itself")


def _classes(report: CheckReport) -> Iterator[Finding]:
    classes = report.classes
    if not classes.count:
        return
    most, fewest = classes.ranked[0], classes.ranked[-1]
    sizes = (
        f"{fewest:,} to {most:,} samples, median {classes.median:,.0f}" if most > fewest else f"{most:,} samples each"
    )
    text = f"{plural(classes.count, 'class', many='classes')} of {sizes}"
    yield Finding(level=Level.OK, topic="classes", text=text)
    if classes.singletons:
        text = f"{plural(classes.singletons, 'class has', many='classes have')} a single sample"
        yield _look("classes", text, advice="such a class cannot be in training and test data at once")
    if most > UNEVEN * fewest:
        text = f"the largest class is {most / fewest:,.0f} times the smallest"
        yield _look("classes", text, advice="read the mean per class, not only top-1")
    if classes.apart:
        names = listed([label for label, _ in classes.apart], count=classes.apart_count)
        text = f"{plural(classes.apart_count, 'label occurs', many='labels occur')} in several sources: {names}"
        advice = "they are kept apart; if they mean the same, give the sources one name: PATH?namespace=NAME"
        yield _look("classes", text, advice=advice)
    if classes.spelling:
        names = listed([" / ".join(group) for group in classes.spelling], count=classes.spelling_count)
        yield _look("classes", f"labels that differ only in case or blanks: {names}", advice="make them one label")


def _known(report: CheckReport) -> Iterator[Finding]:
    for each in report.known:
        sides = [(side, counts) for side, counts in (("images", each.images), ("texts", each.texts)) if any(counts)]
        text = "; ".join(f"{side}: {n[0]:,} present, {n[1]:,} uncertain, {n[2]:,} absent" for side, n in sides)
        yield Finding(level=Level.OK, topic="findings", text=f"{each.name}: {text}")
    alone = [each.name for each in report.known if any(each.images) != any(each.texts)]
    if alone and len(alone) < len(report.known):
        text = f"{plural(len(alone), 'finding is', many='findings are')} known of images or of texts alone"
        yield _look("findings", f"{text}: {listed(alone, count=len(alone))}", advice="give both the same names")


def _images(report: CheckReport) -> Iterator[Finding]:
    images = report.images
    if not images.distinct:
        return
    readable = images.looked - images.unreadable
    text = f"{readable:,} of {images.looked:,} can be read"
    if images.looked < images.distinct:
        text += f"; a sample: there are {images.distinct:,}"
    if readable:
        (w0, w1, w2), (h0, h1, h2) = images.width, images.height
        text += f"; {w0} x {h0} to {w2} x {h2} pixels, median {w1:.0f} x {h1:.0f}"
    yield Finding(level=Level.OK if readable else Level.PROBLEM, topic="images", text=text)
    if images.unreadable:
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in images.reasons[:NAMED])
        text = f"{plural(images.unreadable, 'image', many='images')} cannot be read ({reasons})"
        yield _look("images", text, advice="training leaves them out; mend or remove them")
    if images.tiny:
        yield _look(
            "images",
            f"{plural(images.tiny, 'image has', many='images have')} a side under 32 pixels",
            advice="little can be seen on them",
        )
    if images.long:
        text = f"{plural(images.long, 'image is', many='images are')} more than three times as long as wide"
        yield _look("images", text, advice="a square crop sees less than a third; ALIGN leaves them out")
    if images.plain:
        text = f"{plural(images.plain, 'image shows', many='images show')} a single colour"
        yield _look("images", text, advice="they were not compared for near-duplicates; placeholders, perhaps")


def _copies(report: CheckReport) -> Iterator[Finding]:
    copies = report.copies
    kinds = (
        ("equal files", copies.files),
        ("equal pictures in different files", copies.pixels),
        ("near-duplicates", copies.near),
    )
    if report.images.looked and not any(facts.groups for _, facts in kinds):
        yield Finding(level=Level.OK, topic="copies", text="no image occurs in two files")
    for name, facts in kinds:
        if facts.groups:
            text = f"{name}: {plural(facts.groups, 'group', many='groups')}, {facts.images:,} samples"
            yield _look("copies", text, advice="keep one of each, above all between training and test data")
    yield from _contradictions(("file named by several rows", copies.rows), *kinds)


def _contradictions(*kinds: tuple[str, CopyFacts]) -> Iterator[Finding]:
    for name, facts in kinds:
        if facts.labels_differ:
            text = f"{plural(facts.labels_differ, 'picture has', many='pictures have')} different labels ({name})"
            yield _look("copies", text, advice="one of the labels is wrong, or the picture needs both")
        if facts.across_sources:
            text = f"{plural(facts.across_sources, 'picture is', many='pictures are')} in more than one source ({name})"
            yield _look("copies", text, advice="if one of the sources is for testing, its score will be too good")


def _captions(report: CheckReport) -> Iterator[Finding]:
    captions = report.captions
    if not captions.texts:
        return
    text = f"{captions.texts:,} captions, {captions.distinct:,} distinct; {captions.length[0]} to {captions.length[2]}"
    text += f" tokens ({captions.tokenizer}), median {captions.length[1]:.0f}; {language_list(captions)}"
    yield Finding(level=Level.OK, topic="captions", text=text)
    if captions.repeated:
        text = f"{percent(captions.repeated / captions.texts)} are equal to the caption of another sample"
        most, count = captions.commonest[0]
        yield _look("captions", text, advice=f"the commonest, {count:,} times: {most[:60]!r}")
    if captions.cut > CUT:
        text = f"{percent(captions.cut)} are longer than {captions.context} tokens and would be cut"
        yield _look("captions", text, advice="put what matters first, or train with a longer context")
    if captions.blank:
        yield _look("captions", f"{captions.blank:,} captions are blank", advice="remove them")


def _meetings(report: CheckReport) -> Iterator[Finding]:
    words = {
        "class": ("another image of their class", "; if the class name is the text, the loss stays above {:.2f}"),
        "caption": ("their own caption on another image", ": the loss stays above {:.2f}"),
        "image": ("their own image in another row", ": the loss stays above {:.2f}"),
    }
    for meeting in report.meetings:
        if meeting.batch_size != report.batch_size or meeting.numbers.share <= MEET:
            continue
        what, consequence = words[meeting.key]
        text = f"in a batch of {meeting.numbers.rows:,}, {percent(meeting.numbers.share)} of the rows meet {what}"
        text += f", which recipe clip pushes away{consequence.format(meeting.numbers.floor)}"
        advice = "a larger batch makes it worse; unicl and itl count them as equal"
        if meeting.key == "image":
            advice = "put all captions of an image into one sample"
        yield _look("false negatives", text, advice=advice)


def _verdict(report: CheckReport) -> Iterator[Finding]:
    if not report.recipe:
        advice = "training needs at least two classes or two different captions; check the columns and file names above"
        yield Finding(level=Level.PROBLEM, topic="recipe", text=report.reason, advice=advice)


def _look(topic: str, text: str, *, advice: str) -> Finding:
    return Finding(level=Level.LOOK, topic=topic, text=text, advice=advice)


def plural(count: int, one: str, *, many: str) -> str:
    """``1 class``, ``2 classes``."""
    return f"{count:,} {one if count == 1 else many}"


def percent(share: float) -> str:
    """A share as people write it: small ones are not rounded to nothing, nor large ones to all."""
    if share in (0.0, 1.0):
        return f"{share * 100:.0f} %"
    if share < 0.001:
        return "under 0.1 %"
    if share > 0.999:
        return "over 99.9 %"
    return f"{share * 100:.1f} %" if share < 0.1 or share > 0.99 else f"{share * 100:.0f} %"


def listed(names: list[str], *, count: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {count - NAMED:,} more" if count > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def language_list(captions: Captions) -> str:
    """``Latin script 98 %, Chinese 2 %``."""
    names = {
        "zh": "Chinese",
        "ja": "Japanese",
        "ko": "Korean",
        "ru": "Cyrillic script",
        "ar": "Arabic script",
        "he": "Hebrew",
        "hi": "Devanagari",
        "th": "Thai",
        "el": "Greek",
        "latin": "Latin script",
        "none": "no letters",
    }
    return ", ".join(f"{names.get(code, code)} {percent(share)}" for code, share in captions.languages[:5])
