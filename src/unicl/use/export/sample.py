"""Pictures and texts that an export is compared on, and others that give int8 its ranges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.data.image import decode, fit
from unicl.data.prompts import fill, templates
from unicl.data.sources import Source
from unicl.errors import BadImage, UserError
from unicl.model import TwoTowers

NOUNS: Final = ("dog", "red fruit", "temple by the water", "old man with a hat", "chart", "city at night", "painting")
FORMS: Final = 7
LEAST: Final = 32
"""Texts to calibrate with at least: they cost little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """``pixels (N, 3, S, S)`` uint8 and texts to compare on; ``more_pixels``, ``more_texts`` to calibrate with.

    ``origin`` says where they are from; ``real`` whether the pictures are the user's.
    """

    pixels: Tensor
    texts: tuple[str, ...]
    more_pixels: Tensor
    more_texts: tuple[str, ...]
    origin: str
    real: bool


def draw(model: TwoTowers, sources: Sequence[Source] | None, *, count: int) -> Sample:
    """``count`` pictures and texts of the sources, spread over them, for each use; made up where there are no sources.

    Texts are of all lengths: the user's, short ones, and one that is too long. Raises `UserError` if no picture of the
    sources can be read.
    """
    side = model.settings.image.size
    made = _made_texts(max(count, LEAST))
    if not sources:
        pixels = made_pictures(2 * count, side=side)
        # Even and odd places: what is compared is not what was calibrated with.
        return Sample(
            pixels=pixels[::2],
            texts=made[::2][: max(count, FORMS)],
            more_pixels=pixels[1::2],
            more_texts=made[1::2],
            origin=f"{count} made-up pictures, {max(count, FORMS)} made-up texts",
            real=False,
        )
    pixels = _pictures(model, sources, count=2 * count)
    captions = _captions(sources, count=2 * count)
    texts = (*captions[::2], *made[: max(count - len(captions) // 2, FORMS)])
    more = pixels[1::2] if len(pixels) > 1 else pixels
    names, given = ", ".join(source.name for source in sources), len(captions[::2])
    return Sample(
        pixels=pixels[::2],
        texts=texts,
        more_pixels=more,
        more_texts=(*captions[1::2], *made[1::2]),
        origin=f"{len(pixels[::2])} pictures of {names}, {given} captions, {len(texts) - given} made-up texts",
        real=True,
    )


def made_pictures(count: int, *, side: int, seed: int = 0) -> Tensor:
    """``(count, 3, side, side)`` uint8: smooth colours with edges and a little noise; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(count, 3, side, side)
    for cells, share in ((2, 0.6), (5, 0.6), (16, 0.3), (side, 0.1)):
        small = torch.randn(count, 3, cells, cells, generator=generator)
        pixels += share * F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
    edges = torch.randn(count, 3, 3, 3, generator=generator)
    pixels += 0.5 * F.interpolate(edges, size=(side, side), mode="nearest")
    contrast = 20 + 60 * torch.rand(count, 1, 1, 1, generator=generator)
    light = 70 + 115 * torch.rand(count, 3, 1, 1, generator=generator)
    return (light + contrast * pixels).round().clamp(0, 255).to(torch.uint8)


def _pictures(model: TwoTowers, sources: Sequence[Source], *, count: int) -> Tensor:
    """The first readable ones of an even spread over all samples."""
    samples = [sample for source in sources for sample in source.samples if sample.image is not None]
    spread = max(len(samples) // count, 1)
    order = [sample for start in range(spread) for sample in samples[start::spread]]

    def readable() -> Iterator[Tensor]:
        for sample in order:
            assert sample.image is not None
            try:
                yield fit(decode(sample.image), size=model.settings.image.size, frame=model.settings.image.frame)
            except (BadImage, OSError):
                continue

    found = list(islice(readable(), count))
    if not found:
        names = ", ".join(source.name for source in sources)
        raise UserError(
            f"no picture of {names} can be read, and an export is checked on pictures; give others with --data"
        )
    return torch.stack(found)


def _captions(sources: Sequence[Source], *, count: int) -> list[str]:
    samples = [sample for source in sources for sample in source.samples]
    found = dict.fromkeys(text for sample in samples for text in sample.captions[:1])
    found |= dict.fromkeys(f"a photo of a {label}." for sample in samples for label in sample.labels)
    texts = list(found)
    return texts[:: max(len(texts) // count, 1)][:count]


def _made_texts(count: int) -> tuple[str, ...]:
    """At least `FORMS`, and most of ``2 * count``: class names alone, in templates, strung together, and too long."""
    sentences = [fill(template, noun) for template in templates("en") for noun in NOUNS]
    strung = [f"{a}, {b}" for a, b in zip(sentences, sentences[11:], strict=False)]
    forms = ("a", "红花", *NOUNS[:2], " and ".join(NOUNS), "word " * 400, sentences[0])
    mixed = [text for pair in zip(sentences[::5], strung[::7], strict=False) for text in pair]
    return tuple(dict.fromkeys((*forms, *mixed)))[: max(2 * count, len(forms))]
