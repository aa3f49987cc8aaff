"""Evaluation while training: the samples shared by all ranks, the numbers the same on each."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unicl.data.collate import class_texts
from unicl.data.image import decode, fit
from unicl.data.prompts import language_of
from unicl.data.sources import Source
from unicl.errors import BadImage, UserError
from unicl.evaluate.quick import metrics_from_embeddings
from unicl.evaluate.retrieval import pair_captions
from unicl.evaluate.zeroshot import Truth
from unicl.model import TwoTowers
from unicl.space import Sample
from unicl.train.ranks import Ranks
from unicl.train.watch import together


def evaluator(sources: Sequence[Source], *, prompts: str, ranks: Ranks) -> Callable[[TwoTowers], dict[str, float]]:
    """A function from a model to its zero-shot and retrieval numbers on these samples, each rank embedding its share.

    Raises `UserError` if the samples have neither labels nor captions.
    """
    samples = [s for source in sources for s in source.samples if s.image is not None and (s.labels or s.captions)]
    if not samples:
        raise UserError(
            "the validation data has no image with a label or a caption; name its columns, or leave --val out"
        )

    def evaluate(model: TwoTowers) -> dict[str, float]:
        share = range(len(samples) * ranks.rank // ranks.size, len(samples) * (ranks.rank + 1) // ranks.size)
        with together(ranks=ranks, doing="evaluating"):
            read = [(k, pixels) for k in share if (pixels := _pixels(samples[k], model)) is not None]
            own = torch.tensor([k for k, _ in read], dtype=torch.int64, device=ranks.device)
            embedded = _embedded([pixels for _, pixels in read], model).to(ranks.device)
        sizes = ranks.sizes(len(read))
        rows, images = (ranks.gather(each, sizes=sizes) for each in (own, embedded))
        return _numbers(model, [samples[k] for k in rows.tolist()], images, prompts=prompts)

    return evaluate


def _embedded(pixels: Sequence[Tensor], model: TwoTowers) -> Tensor:
    """Whole embeddings, of which every view is a part; or the class view of a model that has no other."""
    images = torch.stack(list(pixels)) if pixels else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    return model.embed_whole(images) if model.text is not None else model.embed_image(images, view="classes")


def _pixels(sample: Sample, model: TwoTowers) -> Tensor | None:
    assert sample.image is not None
    try:
        image = model.settings.image
        return fit(decode(sample.image), size=image.size, frame=image.frame)
    except BadImage:
        return None


def _numbers(model: TwoTowers, samples: Sequence[Sample], images: Tensor, *, prompts: str) -> dict[str, float]:
    found: dict[str, float] = {}
    names = sorted({label for s in samples for label in s.labels})
    labelled = [k for k, s in enumerate(samples) if s.labels]
    if len(names) > 1:
        vectors = _class_vectors(model, names, prompts=prompts).to(images.device)
        truth = Truth.of([{names.index(label) for label in samples[k].labels} for k in labelled])
        seen = images[labelled] if model.text is None else model.see(images[labelled], view="classes")
        found |= metrics_from_embeddings(class_view=(seen, vectors, truth))
    captioned = [k for k, s in enumerate(samples) if s.captions]
    if captioned and model.text is not None:
        texts, pairs = pair_captions([samples[k].captions for k in captioned])
        instances = model.see(images[captioned], view="instances")
        found |= metrics_from_embeddings(instance_view=(instances, model.embed_text(texts).to(images.device), pairs))
    return found


def _class_vectors(model: TwoTowers, names: Sequence[str], *, prompts: str) -> Tensor:
    fitting = class_texts(prompts).templates
    return model.classifier(names, templates=fitting[language_of(names)])
