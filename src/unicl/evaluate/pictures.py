"""Samples to embeddings, once for all tasks; images that cannot be read are set aside."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from unicl import compare
from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.exact import require_finite
from unicl.evaluate.report import Unreadable
from unicl.model import TwoTowers, View
from unicl.space import Embedding, ImageSource, Sample, all_rows
from unicl.train.features import decoded, kept_features


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """N samples with an image, each image once, and what the model makes of it.

    ``features (N, F)`` before the head; ``instances (N, D)`` and ``classes (N, D')`` the two views of the embedding.
    ``embedding`` is what else it takes to compare them with texts, and None where the views say all.
    """

    samples: tuple[Sample, ...]
    features: Tensor
    instances: Tensor
    classes: Tensor
    embedding: Embedding | None = None
    unreadable: tuple[Unreadable, ...] = ()

    def take(self, index: Tensor) -> Self:
        """The samples at ``index (M,)``."""
        return replace(
            self,
            samples=tuple(self.samples[i] for i in index.tolist()),
            features=self.features[index],
            instances=self.instances[index],
            classes=self.classes[index],
            embedding=None if self.embedding is None else self.embedding.select(index),
        )


def distinct_images(sources: Sequence[Source]) -> tuple[Sample, ...]:
    """The samples that have an image, those of one image merged: all its captions, all its labels.

    A table with a row for each caption becomes one sample an image, and each image of a study one of its own, with a
    number in its id. The id tells the source if there are several.
    """
    merged: dict[ImageSource, Sample] = {}
    for source in sources:
        for sample in source.samples:
            name = f"{source.name}/{sample.id}" if len(sources) > 1 else sample.id
            for number, image in enumerate(sample.images, start=1):
                own = replace(sample, id=name if number == 1 else f"{name}#{number}", image=image, others=())
                merged[image] = _merge(merged.get(image), own)
    return tuple(merged.values())


def embed_pictures(
    model: TwoTowers,
    samples: Sequence[Sample],
    *,
    batch: int = 64,
    progress: bool = False,
    what: str = "images",
    cache: Path | None = None,
) -> Pictures:
    """Decode and embed; each image passes the tower once, and threads decode the next batch meanwhile.

    With a ``cache``, a folder of kept features, no image passes that has passed before.
    Raises `UserError` if no image can be read or the model's embeddings are not finite.
    """
    image = model.settings.image
    if cache is None:
        given = decoded(samples, settings=image, batch=batch)
    else:
        given = kept_features(model, samples, cache, batch=batch, quiet=not progress).seen(settings=image, batch=batch)
    kept: list[Sample] = []
    bad: list[Unreadable] = []
    seen: list[dict[View | Literal["features"], Tensor]] = []
    stay: list[Embedding] = []
    with bar(what, total=len(samples), shown=progress) as advance:
        for part, pixels in given:
            good = [(s, p) for s, p in zip(part, pixels, strict=True) if isinstance(p, Tensor)]
            bad += [Unreadable(id=s.id, reason=p) for s, p in zip(part, pixels, strict=True) if isinstance(p, str)]
            if good:
                kept += [sample for sample, _ in good]
                found = model.encode_images(torch.stack([p for _, p in good]), batch=batch)
                seen.append(model.views_of(found))
                stay += [one] if (one := compare.kept(model, found)) is not None else []
            advance(len(part))
    if not kept:
        raise UserError(_nothing(bad))
    return Pictures(
        samples=tuple(kept),
        features=require_finite(torch.cat([each["features"] for each in seen]), what="images' features"),
        instances=require_finite(torch.cat([each["instances"] for each in seen]), what="image embeddings"),
        classes=require_finite(torch.cat([each["classes"] for each in seen]), what="image embeddings"),
        embedding=_joined(stay, model) if stay else None,
        unreadable=tuple(bad),
    )


def _joined(several: Sequence[Embedding], model: TwoTowers) -> Embedding:
    parts = several[0].parts is not None
    found = all_rows(several, width=model.settings.width, features=model.image.feature_width, parts=parts)
    if found.parts is not None:
        require_finite(found.parts.values, what="images' parts")
    return found


def _merge(first: Sample | None, sample: Sample) -> Sample:
    if first is None:
        return sample
    captions = tuple(dict.fromkeys(first.captions + sample.captions))
    labels = tuple(dict.fromkeys(first.labels + sample.labels))
    return replace(first, captions=captions, labels=labels, findings=first.findings or sample.findings)


def _nothing(bad: Sequence[Unreadable]) -> str:
    if not bad:
        return "the data has no sample with an image; evaluation needs images"
    first = "; ".join(f"{one.id}: {one.reason}" for one in bad[:3])
    return f"none of the {len(bad)} images can be read ({first}); look at them with `unicl check`"
