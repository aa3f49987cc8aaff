"""The task that sorts images into classes by their names, and the result of any task that gives classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from unicl import compare
from unicl.data.prompts import Prompts, sentences_for
from unicl.errors import UserError, suggest
from unicl.evaluate.bar import bar
from unicl.evaluate.classes import Classes
from unicl.evaluate.exact import require_finite
from unicl.evaluate.job import Job, Options, Plan
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.report import Fact, Result
from unicl.evaluate.scoring import class_mistakes, class_scores, confusions
from unicl.evaluate.split import patients_of
from unicl.evaluate.zeroshot import Outcomes, Truth, classify, zero_shot
from unicl.model import Ensemble, TwoTowers
from unicl.objective.terms import Classify

TOP = 5
_TOGETHER: Mapping[Ensemble, str] = {
    "embeddings": "the mean of their vectors",
    "similarities": "the mean of their scores (FILIP)",
    "probabilities": "the mean of their probabilities over the classes (Wukong)",
    "best": "the best of their scores (GLoRIA)",
    "likelihood": "the mean of their log-likelihoods",
}
_TRIVIAL = (f"with {TOP} classes or fewer, top-{TOP} is reached by any model",)


def cannot_zero_shot(plan: Plan) -> str | None:
    """It takes labels, two classes, and a model that reads or predicts texts or a classifier that knows the classes."""
    if not any(sample.labels for sample in plan.samples):
        return "the data has no labels"
    classes = Classes.of(plan.samples, names=plan.options.names)
    if len(classes) < 2:
        return f"there is only one class, {classes.labels[0]!r}"
    if compare.knows_names(plan.model):
        return without_prompts(plan.options.templates, classes)
    known = own_classes(plan.model) if plan.model.text is None else ()
    if not known:
        return f"the model was trained with {plan.model.settings.recipe!r} and has neither text tower nor classifier"
    strange = next((name for name in classes.names if name not in known), None)
    return None if strange is None else f"the model has no class {strange!r}{suggest(strange, known)}"


def without_prompts(prompts: Prompts | None, classes: Classes) -> str | None:
    """Why classes cannot be told by prompts of their own, if some have none; None if all have."""
    if not isinstance(prompts, Mapping):
        return None
    try:
        for name in classes.names:
            sentences_for(prompts, name)
    except UserError as error:
        return str(error)
    return None


def run_zero_shot(job: Job) -> Result:
    """Classes by their names and prompts; images and classes meet in the class view, as the model's settings say.

    One vector a class (CLIP, section 3.1.4), or scores prompt by prompt (`unicl.compare.class_scores`). A model without
    texts is read by its own classifier in their place, and the result says so.
    """
    classes = Classes.of(job.pictures.samples, names=job.options.names)
    index, truth = classes.truth(job.pictures.samples)
    pictures = job.pictures.take(index)
    prompts = job.options.templates or compare.usual_prompts(job.model, classes.names)
    seen = (_by_vectors if compare.classes_by_vectors(job.model) else _by_scores)(
        job, pictures, prompts=prompts, truth=truth, classes=classes
    )
    note = compare.set_note(job.model, truth.size)
    by_name = compare.knows_names(job.model)
    title = "Zero-shot classification" if by_name else "Classification by the model's own classes"
    return classified(
        "zeroshot",
        seen.outcomes,
        # Numbers that depend on the set say so wherever they are shown.
        title=f"{title}, z-scored over these {truth.size:,} pictures" if note and truth.size > 1 else title,
        pictures=pictures,
        truth=truth,
        classes=classes,
        probabilities=seen.probabilities,
        options=job.options,
        facts={**seen.facts, **unlabelled(job.pictures, index)},
        notes=() if note is None else (note,),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What became of each image, the probabilities of classes for some of them, and what is said of the scores."""

    outcomes: Outcomes
    probabilities: Callable[[Tensor], Tensor]
    facts: Mapping[str, Fact]


def _by_vectors(job: Job, pictures: Pictures, *, prompts: Prompts, truth: Truth, classes: Classes) -> _Seen:
    vectors = require_finite(job.model.classifier(classes.names, templates=prompts), what="class vectors")
    by_text = job.model.text is not None
    scale = job.model.scale("classes") if by_text else 1.0
    return _Seen(
        outcomes=classify(pictures.classes, vectors, truth=truth),
        probabilities=lambda rows: (scale * pictures.classes[rows] @ vectors.T).softmax(-1),
        facts={**(_prompted(prompts, classes) if by_text else {}), "dimensions read": vectors.shape[1]},
    )


def _by_scores(job: Job, pictures: Pictures, *, prompts: Prompts, truth: Truth, classes: Classes) -> _Seen:
    model, images = job.model, pictures.embedding
    assert images is not None
    most = max(len(sentences_for(prompts, name)) for name in classes.names)
    with bar("zero-shot: prompts", total=most, shown=job.options.progress) as advance:
        scores_NC = compare.class_scores(model, images, classes.names, templates=prompts, tick=lambda: advance(1))
    require_finite(scores_NC, what="images' class scores")
    return _Seen(
        outcomes=zero_shot(scores_NC, truth),
        probabilities=lambda rows: compare.class_shares(model, scores_NC[rows], pictures=len(scores_NC)),
        facts={
            **_prompted(prompts, classes),
            "prompts of a class come together as": _TOGETHER[model.settings.zero_shot.ensemble],
            "compared by": compare.how_compared(model, "classes"),
        },
    )


def _prompted(prompts: Prompts, classes: Classes) -> dict[str, Fact]:
    """How many prompts there are, and one of them."""
    if not isinstance(prompts, Mapping):
        return {"templates": len(prompts), "such as": prompts[-1]}
    several = [sentences_for(prompts, name) for name in classes.names]
    least, most = (pick(len(each) for each in several) for pick in (min, max))
    number = str(least) if least == most else f"{least} to {most}"
    return {"prompts": f"{number} of each class's own", "such as": several[0][-1]}


def own_classes(model: TwoTowers) -> tuple[str, ...]:
    """The labels of the model's own classifier, if its recipe trained one."""
    heads = [term for term in model.objective.terms.values() if isinstance(term, Classify)]
    return heads[0].labels if heads else ()


def classified(
    task: str,
    outcomes: Outcomes,
    *,
    title: str,
    pictures: Pictures,
    truth: Truth,
    classes: Classes,
    probabilities: Callable[[Tensor], Tensor],
    options: Options,
    facts: Mapping[str, Fact],
    notes: tuple[str, ...] = (),
) -> Result:
    """The result of any task that gives each image a class; ``probabilities`` as in `class_mistakes`."""
    hits = {"top-1": outcomes.hits(1), f"top-{TOP}": outcomes.hits(TOP)}
    scores, of_classes = class_scores(
        task,
        hits,
        truth=truth,
        classes=classes,
        bootstrap=options.bootstrap,
        patients=patients_of(pictures.samples),
    )
    mistakes = class_mistakes(
        outcomes, pictures, truth=truth, classes=classes, probabilities=probabilities, most=options.mistakes
    )
    chance = len(truth.rows) / (truth.size * len(classes))
    return Result(
        task=task,
        title=title,
        scores=scores,
        classes=of_classes,
        confusion=confusions(outcomes, classes=classes),
        mistakes={"images": mistakes},
        facts={"images": truth.size, "classes": len(classes), "top-1 by chance": chance, **facts},
        notes=notes + (_TRIVIAL if len(classes) <= TOP else ()),
    )


def unlabelled(pictures: Pictures, labelled: Tensor) -> dict[str, Fact]:
    """How many images were left out because they have no label, if any."""
    missing = len(pictures.samples) - len(labelled)
    return {"images without a label, left out": missing} if missing else {}
