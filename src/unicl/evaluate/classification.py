"""The task that sorts images into classes by their names, and the result of any task that gives classes."""

from collections.abc import Callable, Mapping

from torch import Tensor

from unicl.data.prompts import language_of, templates
from unicl.errors import suggest
from unicl.evaluate.classes import Classes
from unicl.evaluate.exact import require_finite
from unicl.evaluate.job import Job, Options, Plan
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.report import Fact, Result
from unicl.evaluate.scoring import class_mistakes, class_scores, confusions
from unicl.evaluate.zeroshot import Outcomes, Truth, classify
from unicl.model import TwoTowers
from unicl.objective.terms import Classify

TOP = 5
_TRIVIAL = (f"with {TOP} classes or fewer, top-{TOP} is reached by any model",)


def cannot_zero_shot(plan: Plan) -> str | None:
    """It takes labels, two classes, and a text tower or a classifier that knows the classes."""
    if not any(sample.labels for sample in plan.samples):
        return "the data has no labels"
    classes = Classes.of(plan.samples, names=plan.options.names)
    if len(classes) < 2:
        return f"there is only one class, {classes.labels[0]!r}"
    if plan.model.text is not None:
        return None
    known = own_classes(plan.model)
    if not known:
        return f"the model was trained with {plan.model.settings.recipe!r} and has neither text tower nor classifier"
    strange = next((name for name in classes.names if name not in known), None)
    return None if strange is None else f"the model has no class {strange!r}{suggest(strange, known)}"


def run_zero_shot(job: Job) -> Result:
    """Classes by their names and templates (CLIP, section 3.1.4); images and classes meet in the class view.

    A model without texts is read by its own classifier in their place, and the result says so.
    """
    classes = Classes.of(job.pictures.samples, names=job.options.names)
    index, truth = classes.truth(job.pictures.samples)
    pictures = job.pictures.take(index)
    patterns = tuple(job.options.templates or templates(language_of(classes.names)))
    vectors = require_finite(job.model.classifier(classes.names, templates=patterns), what="class vectors")
    by_text = job.model.text is not None
    scale = job.model.scale("classes") if by_text else 1.0
    shown: dict[str, Fact] = {"templates": len(patterns), "such as": patterns[-1]} if by_text else {}
    return classified(
        "zeroshot",
        classify(pictures.classes, vectors, truth=truth),
        title="Zero-shot classification" if by_text else "Classification by the model's own classes",
        pictures=pictures,
        truth=truth,
        classes=classes,
        probabilities=lambda rows: (scale * pictures.classes[rows] @ vectors.T).softmax(-1),
        options=job.options,
        facts={**shown, "dimensions read": vectors.shape[1], **unlabelled(job.pictures, index)},
    )


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
    scores, of_classes = class_scores(task, hits, truth=truth, classes=classes, bootstrap=options.bootstrap)
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
