"""Evaluation while training: the samples shared by all ranks, the numbers the same on each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unicl import compare
from unicl.data.collate import class_texts
from unicl.data.image import decode, fit
from unicl.data.prompts import language_of
from unicl.data.sources import Source
from unicl.errors import BadImage, UserError
from unicl.evaluate.exact import require_finite
from unicl.evaluate.known import Known, areas
from unicl.evaluate.parts import Peers, encoded_texts, rank_by_scores
from unicl.evaluate.quick import metrics_from_embeddings, outcome_numbers, rank_numbers
from unicl.evaluate.retrieval import Pairs, pair_captions
from unicl.evaluate.zeroshot import Truth, zero_shot
from unicl.model import TwoTowers
from unicl.objective.classify import Classify
from unicl.space import Embedding, Sample
from unicl.train.features import Features
from unicl.train.ranks import Ranks
from unicl.train.watch import together


def evaluator(
    sources: Sequence[Source],
    *,
    prompts: str,
    ranks: Ranks,
    features: Callable[[Sequence[Sample]], Features] | None = None,
) -> Callable[[TwoTowers], dict[str, float]]:
    """A function from a model to its zero-shot and retrieval numbers on these samples, each rank embedding its share.

    ``features`` gives what an image tower that never learns says of samples, once for all evaluations.
    Raises `UserError` if the samples have neither labels nor captions.
    """
    every = [s for source in sources for s in source.samples if s.image is not None]
    samples = [s for s in every if s.labels or s.captions or s.findings]
    if not samples:
        raise UserError(
            "the validation data has no image with a label or a caption; name its columns, or leave --val out"
        )

    kept = None if features is None else features(samples)

    def evaluate(model: TwoTowers) -> dict[str, float]:
        share = range(len(samples) * ranks.rank // ranks.size, len(samples) * (ranks.rank + 1) // ranks.size)
        with together(ranks=ranks, doing="evaluating"):
            looked = ((k, _pixels(samples[k], model) if kept is None else kept[k]) for k in share)
            read = [(k, pixels) for k, pixels in looked if pixels is not None]
            own = torch.tensor([k for k, _ in read], dtype=torch.int64, device=ranks.device)
            images = _embedded([pixels for _, pixels in read], model)
        sizes = ranks.sizes(len(read))
        readable = [samples[k] for k in ranks.gather(own, sizes=sizes).tolist()]
        job = _Job(model=model, samples=readable, images=images, prompts=prompts, ranks=ranks, sizes=sizes)
        return _finding_numbers(job) | _class_numbers(job) | _retrieval_numbers(job)

    return evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The samples that can be read, those of one process after those of another, and what is known of its own."""

    model: TwoTowers
    samples: Sequence[Sample]
    images: Embedding
    prompts: str
    ranks: Ranks
    sizes: tuple[int, ...]

    @property
    def own(self) -> range:
        """The numbers of this process's samples."""
        start = sum(self.sizes[: self.ranks.rank])
        return range(start, start + self.sizes[self.ranks.rank])

    def gather(self, rows: Tensor, *, of: Sequence[int]) -> Tensor:
        """The rows of all processes, of which this one has those of its samples that are among ``of``, ascending."""
        ends = torch.tensor(self.sizes).cumsum(0)
        owners = torch.searchsorted(ends, torch.tensor(of, dtype=torch.int64), right=True)
        sizes = torch.bincount(owners, minlength=len(self.sizes)).tolist()
        return self.ranks.gather(rows.to(self.ranks.device), sizes=sizes)

    def own_of(self, of: Sequence[int]) -> Embedding:
        """This process's images among ``of``."""
        return self.images.select(torch.tensor([k - self.own.start for k in of if k in self.own], dtype=torch.int64))


def _embedded(pixels: Sequence[Tensor], model: TwoTowers) -> Embedding:
    """Pictures with their parts if they are compared with texts by more than their views."""
    found = model.encode_images(torch.stack(list(pixels)) if pixels else torch.zeros(0, 3, 1, 1, dtype=torch.uint8))
    return compare.kept(model, found) or replace(found, parts=None)


def _pixels(sample: Sample, model: TwoTowers) -> Tensor | None:
    assert sample.image is not None
    try:
        image = model.settings.image
        return fit(decode(sample.image), size=image.size, frame=image.frame)
    except BadImage:
        return None


def _finding_numbers(job: _Job) -> dict[str, float]:
    """The mean area under the ROC curve of a model whose own layer tells findings."""
    model, layer = job.model, _finding_layer(job.model)
    told = [k for k, s in enumerate(job.samples) if s.findings]
    if layer is None or not told:
        return {}
    names, unmentioned = layer.labels, layer.settings.unmentioned
    vectors = model.classifier(names, templates=("{}",))
    scores_NC = job.gather(model.views_of(job.own_of(told))["classes"] @ vectors.T, of=told).cpu()
    known = Known.of([job.samples[k] for k in told], names, unmentioned=unmentioned)
    area = float(areas(require_finite(scores_NC, what="images' scores of findings"), known).nanmean())
    return {} if math.isnan(area) else {"findings/auc": area}


def _finding_layer(model: TwoTowers) -> Classify | None:
    """The layer of a model that knows findings by it alone, and not by texts."""
    terms = model.objective.terms.values() if model.text is None else ()
    return next((t for t in terms if isinstance(t, Classify) and t.settings.of == "findings"), None)


def _class_numbers(job: _Job) -> dict[str, float]:
    names = sorted({label for s in job.samples for label in s.labels})
    labelled = [k for k, s in enumerate(job.samples) if s.labels]
    model, prompts = job.model, job.prompts
    blind = model.text is not None and not model.settings.reads_texts
    if len(names) < 2 or blind or _finding_layer(model) is not None:
        return {}
    given = None if prompts == "auto" else class_texts(prompts).templates[language_of(names)]
    templates = given or compare.usual_prompts(model, names)
    truth = Truth.of([{names.index(label) for label in job.samples[k].labels} for k in labelled])
    own = job.own_of(labelled)
    if compare.classes_by_vectors(model):
        vectors = model.classifier(names, templates=templates).to(job.ranks.device)
        seen = job.gather(model.views_of(own)["classes"], of=labelled)
        return metrics_from_embeddings(class_view=(seen, vectors, truth))
    with together(ranks=job.ranks, doing="evaluating"):
        scores = compare.ensemble_scores(model, own, names, templates=templates)
    scores_NC = require_finite(job.gather(scores, of=labelled).cpu(), what="images' class scores")
    if model.settings.zero_shot.standardise:
        scores_NC = compare.standardised(scores_NC)
    return outcome_numbers(zero_shot(scores_NC, truth), truth=truth, classes=len(names))


def _retrieval_numbers(job: _Job) -> dict[str, float]:
    model, ranks = job.model, job.ranks
    captioned = [k for k, s in enumerate(job.samples) if s.captions]
    if not captioned or not model.settings.reads_texts:
        return {}
    texts, pairs = pair_captions([job.samples[k].captions for k in captioned])
    own = job.own_of(captioned)
    if not compare.reads_parts(model, "instances"):
        instances = job.gather(model.see(own.whole, view="instances"), of=captioned)
        return metrics_from_embeddings(instance_view=(instances, model.embed_text(texts).to(ranks.device), pairs))
    here = [place for place, k in enumerate(captioned) if k in job.own]
    first, stop = (here[0], here[-1] + 1) if here else (0, 0)
    mine = (pairs.images >= first) & (pairs.images < stop)
    found = rank_by_scores(
        model,
        own,
        encoded_texts(model, texts),
        pairs=Pairs(images=pairs.images[mine] - first, texts=pairs.texts[mine]),
        peers=Peers(
            most=lambda values: ranks.max(values.to(ranks.device)).cpu(),
            total=lambda values: ranks.sum(values.to(ranks.device)).cpu(),
        ),
    )
    of_images = job.gather(found.image_to_text, of=captioned).cpu()
    return rank_numbers(replace(found, image_to_text=of_images))
