"""How well findings are told from images, by the area under the ROC curve: by their names, and by a linear probe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from unicl import compare
from unicl.data.prompts import Prompts, language_of, prompt_set, sentences_for, templates
from unicl.data.subset import part_rows
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.exact import require_finite
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.known import Known, area_statistic, areas
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.probe import MAX_ITERATIONS, fit_logistic
from unicl.evaluate.report import Fact, Result, Score
from unicl.evaluate.scoring import measured
from unicl.evaluate.split import patients_of, shared_patients, stratified, told
from unicl.evaluate.zeroshot import Truth
from unicl.objective.classify import ClassifySettings
from unicl.space import Sample

FRACTIONS: Final = (0.01, 0.1, 1.0)
STRENGTHS: Final = (1.0, 10.0, 100.0, 1e3, 1e4)
"""The L2 strengths that are tried, on features of deviation 1."""
USUAL_STRENGTH: Final = 100.0
HELD_OUT: Final = 0.2
_NO: Final = {"en": "no {}", "zh": "没有{}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The ``scores (N, C)`` that something gives to the findings ``names`` of some samples; ``each`` is shown apart."""

    key: str
    title: str
    scores: Tensor
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    each: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a way of telling findings saw, and what is to be said of it."""

    seen: tuple[_Seen, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def cannot_find_findings(plan: Plan) -> str | None:
    """It takes a finding that some images have and some have not."""
    if not any(sample.findings for sample in plan.samples):
        return "the data has no findings (their columns are named with findings=A,B or findings=*)"
    if not decided(plan.samples):
        return "there is no finding that some of the images have and others do not"
    return None


def run_findings(job: Job) -> Result:
    """Areas under the ROC curve, of each finding and their mean.

    By name: an image's score with the prompts of a finding, and less that with "no ..." (as CheXzero's pairs of
    prompts); or by the model's own layer, if it has one of findings and no texts. By a linear probe: logistic
    regression on features before the head, a finding at a time, with 1, 10 and 100 % of the training images (ConVIRT,
    section 4.3; a larger part holds the smaller one). Absent and not mentioned count as no, and an uncertain finding is
    not asked for.
    """
    named = _by_name(job) if job.model.settings.reads_texts else _by_layer(job)
    probed = _probed(job)
    return Result(
        task="findings",
        title="Findings: area under the ROC curve",
        scores=tuple(score for each in (*named.seen, *probed.seen) for score in _scores(each, job.options.bootstrap)),
        facts={
            "images": len(job.pictures.samples),
            **named.facts,
            **probed.facts,
            "absent and not mentioned": "count as no",
            "uncertain": "not asked for",
        },
        notes=named.notes + probed.notes,
    )


def decided(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The findings that some samples have and others do not, in the order of the data."""
    names = tuple(dict.fromkeys(name for sample in samples for name, _ in sample.findings))
    known = Known.of(samples, names)
    both = (known.yes & known.asked).any(0) & (~known.yes & known.asked).any(0)
    return tuple(name for name, some in zip(names, both.tolist(), strict=True) if some)


def probe(
    training: Pictures,
    features_NF: Tensor,
    names: Sequence[str],
    *,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, float]:
    """``(N, C)`` log-odds of findings by logistic regressions on standardised features, and their one L2 strength.

    The strength is that with the best mean area on a part that is held out, drawn by ``seed``, patients as a whole;
    `USUAL_STRENGTH` where that part tells nothing. ``tick`` is called for each strength and for the end.
    """
    mean, deviation = training.features.double().mean(0), training.features.double().std(0, correction=0)
    learnt, asked = ((each.double() - mean) / deviation.clamp(min=1e-6) for each in (training.features, features_NF))
    known = Known.of(training.samples, names)
    kept, held = _drawn(training.samples, fraction=HELD_OUT, seed=seed)
    own, wanted = (Known(yes=known.yes[rows], asked=known.asked[rows]) for rows in (kept, held))
    best, strength = -1.0, USUAL_STRENGTH
    for tried in STRENGTHS:
        found = _fitted(learnt[kept], own, learnt[held], strength=tried)
        area = float(areas(found, wanted).nanmean()) if len(held) else -1.0
        # At equal areas the stronger one: it changes less with the sample.
        if area >= best and area >= 0:
            best, strength = area, tried
        tick()
    scores_NC = _fitted(learnt, known, asked, strength=strength)
    tick()
    return scores_NC, strength


def _fitted(learnt_MF: Tensor, known: Known, asked_NF: Tensor, *, strength: float) -> Tensor:
    """The log-odds of each finding by its own regression; 0 for one that all have, or none has."""
    scores_NC = torch.zeros(len(asked_NF), known.yes.shape[1], dtype=torch.float64)
    for column in range(known.yes.shape[1]):
        rows = known.asked[:, column].nonzero()[:, 0]
        yes = known.yes[rows, column].long()
        if not 0 < int(yes.sum()) < len(yes):
            continue
        fit = fit_logistic(learnt_MF[rows], Truth.of(yes), classes=2, strength=strength, max_iterations=MAX_ITERATIONS)
        both = fit.scores(asked_NF)
        scores_NC[:, column] = both[:, 1] - both[:, 0]
    return scores_NC


def _by_name(job: Job) -> _Told:
    """Scores of the findings that have prompts, alone and against their absence."""
    every, samples = decided(job.pictures.samples), job.pictures.samples
    prompts = job.options.templates or _usual(every)
    names = tuple(name for name in every if _has_prompts(prompts, name))
    absent = tuple(name for name in every if name not in names)
    notes = (f"not told by name, since the prompts have none: {', '.join(absent)}",) if absent else ()
    if not names:
        return _Told(notes=notes)
    there_NC = _class_scores(job, names, prompts)
    # "No Finding" has no absence of its own.
    plain = torch.tensor([name.casefold().startswith("no ") for name in names])
    without_NC = _class_scores(job, names, (_NO[language_of(names)],)).masked_fill(plain, 0)
    alone = _Seen(key="zeroshot", title="by name", scores=there_NC, names=names, samples=samples)
    against = replace(alone, key="against", title='by name less "no ..."', scores=there_NC - without_NC, each=False)
    several = [len(sentences_for(prompts, name)) for name in names]
    facts = {"prompts": f"{min(several)} to {max(several)} of a finding"}
    return _Told(seen=(alone, against), facts=facts, notes=notes)


def _by_layer(job: Job) -> _Told:
    """Scores of a model that was trained, or fine-tuned, to tell findings by a layer of its own."""
    layer = next((t for t in job.model.settings.terms if isinstance(t, ClassifySettings) and t.of == "findings"), None)
    own = {one.label for one in job.model.settings.classes}
    names = tuple(name for name in decided(job.pictures.samples) if layer is not None and name in own)
    if not names:
        return _Told()
    scores_NC = job.pictures.classes @ job.model.classifier(names, templates=("{}",)).T
    scores_NC = require_finite(scores_NC, what="images' scores of findings")
    seen = _Seen(
        key="layer", title="by the model's own layer", scores=scores_NC, names=names, samples=job.pictures.samples
    )
    return _Told(seen=(seen,))


def _probed(job: Job) -> _Told:
    """Scores of linear probes that learn from parts of the training images."""
    training, test = _divided(job)
    names = tuple(name for name in decided(test.samples) if name in decided(training.samples))
    left = [name for name in decided(job.pictures.samples) if name not in names]
    facts: dict[str, Fact] = {"split": told(training.samples, test.samples)}
    seen, fits = [], len(FRACTIONS) * (len(STRENGTHS) + 1)
    with bar("findings: linear probes", total=fits, shown=job.options.progress) as advance:
        for fraction in FRACTIONS if names else ():
            rows = part_rows(training.samples, fraction=fraction, seed=job.options.seed)
            part = training.take(torch.tensor(rows))
            scores_NC, strength = probe(part, test.features, names, seed=job.options.seed, tick=lambda: advance(1))
            percent = f"{fraction:.0%}"
            facts |= {f"training images at {percent}": len(rows), f"L2 strength at {percent}": strength}
            of_labels = f"probe, {percent} of labels"
            key, each = f"probe{100 * fraction:g}", fraction == 1
            seen.append(_Seen(key=key, title=of_labels, scores=scores_NC, names=names, samples=test.samples, each=each))
    said = (
        f"not probed, since the images to learn from or to measure on all have them, or none has: {', '.join(left)}"
        if test.samples
        else "not probed, since all images are of one patient; give others to learn from with --train-data"
    )
    notes = shared_patients(training.samples, test.samples)
    return _Told(seen=tuple(seen), facts=facts, notes=(*notes, said) if left else notes)


def _class_scores(job: Job, names: Sequence[str], prompts: Prompts) -> Tensor:
    model, pictures = job.model, job.pictures
    if compare.classes_by_vectors(model):
        found = pictures.classes @ model.classifier(names, templates=prompts).T
    else:
        assert pictures.embedding is not None
        # The order of images by one finding is the same before and after standardising.
        found = compare.ensemble_scores(model, pictures.embedding, names, templates=prompts)
    return require_finite(found, what="images' scores of findings")


def _usual(names: Sequence[str]) -> Prompts:
    own = prompt_set("chexpert")
    return own if all(_has_prompts(own, name) for name in names) else templates(language_of(names))


def _has_prompts(prompts: Prompts, name: str) -> bool:
    try:
        return bool(sentences_for(prompts, name))
    except UserError:
        return False


def _divided(job: Job) -> tuple[Pictures, Pictures]:
    """Images to learn from and to measure on: the training data and the data, or two parts of it, drawn by the seed.

    No patient is in both parts. Of a single patient, none is left to measure on.
    """
    known = [row for row, sample in enumerate(job.pictures.samples) if sample.findings]
    own = job.pictures.take(torch.tensor(known))
    if job.training is not None:
        return job.training.take(torch.tensor([k for k, s in enumerate(job.training.samples) if s.findings])), own
    learnt, measured_on = _drawn(own.samples, fraction=job.options.test_fraction, seed=job.options.seed)
    return own.take(learnt), own.take(measured_on)


def _drawn(samples: Sequence[Sample], *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return stratified([0] * len(samples), fraction=fraction, generator=generator, patients=patients_of(samples))


def _scores(seen: _Seen, bootstrap: Bootstrap) -> list[Score]:
    known = Known.of(seen.samples, seen.names)
    statistic, patients = area_statistic(seen.scores, known), patients_of(seen.samples)
    numbers = measured(statistic, samples=len(seen.samples), bootstrap=bootstrap, patients=patients)
    sizes = [int(known.asked.any(1).sum()), *known.asked.sum(0).tolist()]
    labels = [("mean", "mean"), *((name, name) for name in seen.names)] if seen.each else [("mean", "mean")]
    return [
        Score(
            key=f"findings/{seen.key}/{label}",
            name=f"{seen.title}: {name}",
            value=value,
            low=low,
            high=high,
            n=size,
            unit="fraction",
        )
        for (label, name), (value, low, high), size in zip(labels, numbers, sizes, strict=False)
    ]
