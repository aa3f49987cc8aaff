"""All tasks of an evaluation in one pass over the images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from unicl.data.prompts import Prompts, prompt_set
from unicl.data.sources import Source
from unicl.errors import UserError, suggest
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.captions import cannot_retrieve, run_retrieval
from unicl.evaluate.classes import Names
from unicl.evaluate.classification import cannot_zero_shot, run_zero_shot
from unicl.evaluate.composed import cannot_compose, run_composed
from unicl.evaluate.directions import (
    cannot_find_images,
    cannot_find_texts,
    run_image_to_image,
    run_image_to_text,
    run_text_to_image,
    run_text_to_text,
)
from unicl.evaluate.findings import cannot_find_findings, run_findings
from unicl.evaluate.job import Job, Options, Plan, Task
from unicl.evaluate.languages import Captions, cannot_compare_languages, run_languages
from unicl.evaluate.learned import cannot_learn, run_neighbours, run_probe
from unicl.evaluate.linear import run_linear
from unicl.evaluate.pictures import distinct_images, embed_pictures
from unicl.evaluate.precision import cannot_be_precise, run_precision
from unicl.evaluate.predictions import predicted
from unicl.evaluate.queries import Composed, located
from unicl.evaluate.rated import Ratings, graded
from unicl.evaluate.report import Fact, Report, Result
from unicl.evaluate.similarity import cannot_correlate, run_similarity
from unicl.evaluate.svm import cannot_separate, run_svm
from unicl.model import TwoTowers

TASKS = (
    Task(name="zeroshot", why_not=cannot_zero_shot, run=run_zero_shot),
    Task(name="retrieval", why_not=cannot_retrieve, run=run_retrieval),
    Task(name="probe", why_not=cannot_learn, run=run_probe, learns=True),
    Task(name="knn", why_not=cannot_learn, run=run_neighbours, learns=True),
    Task(name="linear", why_not=cannot_learn, run=run_linear, learns=True, unasked=False),
    Task(name="svm", why_not=cannot_separate, run=run_svm, learns=True, unasked=False),
    Task(name="i2t", why_not=cannot_retrieve, run=run_image_to_text, unasked=False),
    Task(name="t2i", why_not=cannot_retrieve, run=run_text_to_image, unasked=False),
    Task(name="t2t", why_not=cannot_find_texts, run=run_text_to_text, unasked=False),
    Task(name="i2i", why_not=cannot_find_images, run=run_image_to_image, unasked=False),
    Task(name="similarity", why_not=cannot_correlate, run=run_similarity),
    Task(name="composed", why_not=cannot_compose, run=run_composed),
    Task(name="languages", why_not=cannot_compare_languages, run=run_languages),
    Task(name="precision", why_not=cannot_be_precise, run=run_precision, unasked=False),
    Task(name="findings", why_not=cannot_find_findings, run=run_findings, learns=True),
)


def evaluate(
    model: TwoTowers,
    sources: Sequence[Source],
    *,
    tasks: Sequence[str] = (),
    names: Names | None = None,
    templates: Prompts | str = "auto",
    train_sources: Sequence[Source] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    batch: int = 64,
    bootstrap: Bootstrap | None = None,
    mistakes: int = 12,
    progress: bool = False,
    title: str = "",
    ratings: Ratings | None = None,
    composed: Composed | None = None,
    languages: Captions | None = None,
    asked: Sequence[Source] = (),
    cache: Path | None = None,
    predictions: Path | None = None,
) -> Report:
    """Measure a model on labelled and captioned images; the same call gives the same report.

    * ``tasks``: "zeroshot", "retrieval", "probe", "knn"; "i2t", "t2i", "t2t", "i2i"; "similarity", "composed",
      "languages", "precision", "findings", "linear", "svm"; none means all that the data and the model allow, without
      the four directions, precision, linear and svm.
    * ``names``: the classes, as a list or as label to name; by default the sorted labels of the data.
    * ``templates``: sentences with ``{}``, sentences of each class by its name, or the name of a set as in
      `unicl.data.prompts.prompt_set`; "auto" is the English or Chinese set that fits the names.
    * ``train_sources``: what probe and neighbours learn from; without them the data is split, ``test_fraction`` of each
      class for measuring, drawn by ``seed``.
    * ``batch``: images that pass the tower at once. ``mistakes``: how many of each kind the report shows.
    * ``cache``: a folder that keeps what the image tower says, as `unicl.train.features` writes it.
    * ``predictions``: a folder for the ten best answers to each query (`unicl.evaluate.predictions.predicted`).

    * ``ratings``, ``composed``, ``languages``: what `read_ratings`, `read_composed` and `read_languages` read.
    * ``asked``: images and texts with labels that are the queries of "precision"; else those of the data and prompts.

    Raises `UserError` for a task that cannot be done, unless others can: then a note of the report says why not.
    """
    options = Options(
        names=names,
        templates=_sentences(templates),
        test_fraction=_fraction(test_fraction),
        seed=seed,
        bootstrap=bootstrap or Bootstrap(seed=seed),
        mistakes=mistakes,
        progress=progress,
    )
    training = None if train_sources is None else distinct_images(train_sources)
    samples = distinct_images(sources)
    options = replace(
        options,
        rated=() if ratings is None else graded(ratings, samples),
        positive=None if ratings is None else ratings.positive,
        composed=None if composed is None else located(composed, samples),
        languages=languages,
        asked=tuple(sample for source in asked for sample in source.samples),
    )
    plan = Plan(model=model, samples=samples, training=training, options=options)
    # Of a test set only others know the right answers, so that predictions are all there is to make.
    must = predictions is None
    chosen, notes = _possible(_known(tasks), plan, asked=bool(tasks), must=must)
    job = _embed(plan, chosen, batch=batch, cache=cache)
    # Unreadable images may have taken a task's last labels or captions with them.
    chosen, more = _possible(chosen, job.plan, asked=bool(tasks), must=must)
    results = [task.run(job) for task in chosen]
    if predictions is not None:
        results.append(predicted(job, sources, predictions))
    return _report(job, results, sources=sources, notes=notes + more, title=title)


def _known(tasks: Sequence[str]) -> tuple[Task, ...]:
    names = tuple(task.name for task in TASKS)
    for name in tasks:
        if name not in names:
            raise UserError(f"there is no task {name!r}{suggest(name, names)}; choose from {', '.join(names)}")
    return tuple(task for task in TASKS if (task.name in tasks if tasks else task.unasked))


def _possible(
    tasks: Sequence[Task], plan: Plan, *, asked: bool, must: bool
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    if not plan.samples:
        raise UserError("the data has no sample with an image; evaluation needs images")
    reasons = {task: task.why_not(plan) for task in tasks}
    possible = tuple(task for task, reason in reasons.items() if reason is None)
    if not possible and must:
        said = "; ".join(f"{task.name}: {reason}" for task, reason in reasons.items())
        raise UserError(f"nothing can be evaluated on this data ({said}); tasks take labels, captions or findings")
    # What nobody asked for is not missed.
    notes = tuple(f"{task.name} was left out: {reason}" for task, reason in reasons.items() if reason and asked)
    return possible, notes


def _embed(plan: Plan, tasks: Sequence[Task], *, batch: int, cache: Path | None) -> Job:
    embed = partial(embed_pictures, plan.model, batch=batch, progress=plan.options.progress, cache=cache)
    training = None
    if plan.training is not None and any(task.learns for task in tasks):
        training = embed(plan.training, what="training images")
    return Job(model=plan.model, pictures=embed(plan.samples), training=training, options=plan.options)


def _report(
    job: Job, results: Sequence[Result], *, sources: Sequence[Source], notes: tuple[str, ...], title: str
) -> Report:
    settings, bootstrap = job.model.settings, job.options.bootstrap
    unreadable = job.pictures.unreadable + (job.training.unreadable if job.training else ())
    facts: dict[str, Fact] = {
        "recipe": settings.recipe,
        "image tower": settings.image.name,
        "text tower": settings.text.name if settings.text else "none",
        "embedding width": settings.width,
        "data": ", ".join(source.name for source in sources),
        "images": len(job.pictures.samples),
        "images that could not be read": len(unreadable),
        "seed": job.options.seed,
        "resamples": bootstrap.resamples,
    }
    return Report(
        title=title or settings.recipe,
        facts=facts,
        level=bootstrap.level,
        results=tuple(results),
        notes=notes + _name_clash(sources) + tuple(f"{s.name}: {note}" for s in sources for note in s.notes),
        unreadable=unreadable,
    )


def _name_clash(sources: Sequence[Source]) -> tuple[str, ...]:
    spaces: dict[str, set[str]] = {}
    for sample in (sample for source in sources for sample in source.samples):
        for label in sample.labels:
            spaces.setdefault(label, set()).add(sample.namespace)
    both = sorted(label for label, names in spaces.items() if len(names) > 1)
    if not both:
        return ()
    return (f"equal labels of several sources are measured as one class: {', '.join(both[:5])}",)


def _sentences(given: Prompts | str) -> Prompts | None:
    if given == "auto":
        return None
    return prompt_set(given) if isinstance(given, str) else given


def _fraction(value: float) -> float:
    if not 0 < value < 1:
        raise UserError(f"the test fraction is {value}, but must lie between 0 and 1, such as 0.2")
    return value
