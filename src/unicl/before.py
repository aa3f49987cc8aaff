"""What a run needs of its data, and what it says before the first step."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from unicl.data.keys import finding_key
from unicl.data.mixture import pools_of
from unicl.data.sources import Source
from unicl.data.words.tags import captions_of
from unicl.errors import UserError
from unicl.model import TwoTowers
from unicl.objective.terms import BagSettings, CaptionSettings, ClassifySettings, ContrastSettings, MaskedSettings
from unicl.recipes import Recipe
from unicl.recipes.recipe import at_stage, stages_of
from unicl.similarity.find import OF_PARTS
from unicl.space import Sample
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.train.learning import Learning
from unicl.train.stages import Stage, Turn, pick_sources

FEW: Final = 0.1
"""A smaller share of a batch teaches its side of the findings little."""


def check(recipe: Recipe, sources: Sequence[Source]) -> None:
    """Every recipe says by its terms what it needs; what it or the data lacks is an error before the first step."""
    _check_parts(recipe)
    if recipe.tags is not None:
        captions_of(sources)
    samples = [sample for source in sources for sample in source.samples]
    texts, labels = any(s.captions or s.labels for s in samples), any(s.labels for s in samples)
    found = "; ".join(f"{source.name} has {_columns(source)}" for source in sources)
    if not any(s.image is not None for s in samples):
        raise UserError(f"recipe {recipe.name!r} needs images, but there are none: {found}")
    for term in recipe.terms:
        if isinstance(term, ClassifySettings) and term.of == "labels" and not labels and recipe.tags is None:
            raise UserError(
                f"recipe {recipe.name!r} needs labels, but {found}; name the label column with 'PATH?label=COLUMN', "
                "or train with --recipe clip"
            )
        if isinstance(term, CaptionSettings | BagSettings | MaskedSettings):
            _check_pairs(recipe, sources, found=found)
        if isinstance(term, ContrastSettings) and term.texts == "findings":
            _check_findings(recipe, samples, found=found)
        elif isinstance(term, ContrastSettings) and not texts:
            raise UserError(
                f"recipe {recipe.name!r} needs captions or labels, but {found}; name the column with "
                "'PATH?text=COLUMN' or 'PATH?label=COLUMN'"
            )
        elif isinstance(term, ContrastSettings) and not any(s.image and (s.captions or s.labels) for s in samples):
            raise UserError(
                f"recipe {recipe.name!r} needs pairs, but no row has both an image and a text or label: {found}; name "
                "both columns with 'PATH?image=COLUMN&text=COLUMN', or train with --recipe medclip, which matches "
                "images and texts by their findings"
            )
    if recipe.data.text_views > 1 and not any(isinstance(term, ContrastSettings) for term in recipe.terms):
        raise UserError(
            f"recipe {recipe.name!r} compares no texts, so that nothing reads a second view of them; leave "
            "data.text_views at 1"
        )
    classes = {(s.namespace, label) for s in samples for label in s.labels}
    if len(classes) == 1 and not any(s.captions for s in samples):
        only = next(iter(classes))[1]
        raise UserError(
            f"all labels are {only!r}: one class alone teaches nothing; add another class or captions ({found})"
        )


def _check_findings(recipe: Recipe, samples: Sequence[Sample], *, found: str) -> None:
    """Images and texts are matched by findings, so that both need some, of the same names."""
    images = {name for s in samples if s.image is not None for name, _ in s.findings}
    texts = {name for s in samples if s.captions for name, _ in s.findings}
    in_reports = (
        ", find them in reports first with unicl label REPORTS --out findings.csv, or take prompts of findings as "
        "texts with --data 'chexpert?format=prompts'"
    )
    for side, known, other in (("images", images, ""), ("texts", texts, in_reports)):
        if not known:
            raise UserError(
                f"recipe {recipe.name!r} matches images and texts by their findings, but no {side} have any: {found}; "
                f"name the columns with 'PATH?findings=*' (cells 1, 0, -1 or blank){other}"
            )
    shared = {finding_key(name) for name in images} & {finding_key(name) for name in texts}
    if not shared:
        some = [", ".join(repr(name) for name in sorted(known)[:8]) for known in (images, texts)]
        raise UserError(
            f"the findings of images ({some[0]}) and of texts ({some[1]}) have no name in common; call them alike in "
            "both tables"
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


def _check_pairs(recipe: Recipe, sources: Sequence[Source], *, found: str) -> None:
    """Captions are predicted from their own images, so that some rows must have both."""
    if not recipe.data.captions:
        raise UserError(
            f"recipe {recipe.name!r} predicts captions, but its data does not say which are an image's; set "
            "--set data.captions=true"
        )
    if not any(_pairs(source) for source in sources):
        raise UserError(
            f"recipe {recipe.name!r} predicts captions from their images and needs both in one row, which none has: "
            f"{found}; name the columns with 'PATH?image=COLUMN&text=COLUMN', or train with --recipe itl, which takes "
            "labels and unpaired texts"
        )


def _pairs(source: Source) -> int:
    return sum(s.image is not None and bool(s.captions) for s in source.samples)


def _columns(source: Source) -> str:
    columns = ", ".join(f"{use} {column!r}" for use, column in source.guessed.items())
    kinds = Counter(
        kind
        for s in source.samples
        for kind, has in (("captions", s.captions), ("labels", s.labels), ("findings", s.findings))
        if has
    )
    held = (
        " and ".join(f"{number} samples with {kind}" for kind, number in kinds.items()) or "neither captions nor labels"
    )
    return f"{held}{f' (read as: {columns})' if columns else ''}"


def introduce(
    recipe: Recipe,
    sources: Sequence[Source],
    *,
    model: TwoTowers,
    init: str | None,
    out: Path,
    say: Callable[..., None],
) -> None:
    """Print what is about to happen, the guessed columns and the defaults included."""
    for source in sources:
        say(f"{source.name}: {source.format}, {len(source.samples)} samples, {_columns(source)}")
        for note in source.notes:
            say(f"  {note}")
        if recipe.data.captions and not _pairs(source):
            say("  no sample has an image and a caption, so that none teaches to predict captions")
    shared = _shared_labels(sources)
    if shared:
        say(
            f"  the label {shared[0]!r} (and {len(shared) - 1} more) is in several sources and kept apart; "
            "give them one namespace with '?namespace=NAME' to merge them"
        )
    numbers = sum(p.numel() for p in model.parameters()) / 1e6
    begun = f" on {init}" if init else ""
    image, text = f"image {_told(recipe.image, init, f'{recipe.image.size} px')}", "no text"
    if recipe.words is not None and recipe.text is None:
        text = f"words of the {recipe.words.tokenizer} tokenizer"
    if recipe.text is not None:
        tokenizer = recipe.text.tokenizer or "its own"
        text = f"text {_told(recipe.text, init, f'{tokenizer} tokenizer')}"
    say(f"recipe {recipe.name}{begun}: {image}, {text}, width {model.settings.width}, {numbers:.1f} M parameters")
    compared = [f"{t.name} by {t.similarity}" for t in recipe.terms if isinstance(t, ContrastSettings)]
    if any(not each.endswith("cosine") for each in compared):
        say(f"  compared: {', '.join(compared)}")
    stages = stages_of(recipe)
    for number in range(len(stages)) if len(stages) > 1 else ():
        turn = Turn(stages=stages, number=number)
        say(f"{turn.name()}: {_learning(recipe, turn.stage)}; {_length(recipe, sources, turn)}")
    if any(isinstance(term, ContrastSettings) and term.texts == "findings" for term in recipe.terms):
        say(_sides(recipe, sources))
    settings = f"{recipe.fit.precision}, seed {recipe.fit.seed}; everything is in {out}"
    single = f"{_length(recipe, sources, Turn(stages=stages, number=0))}, " if len(stages) == 1 else ""
    say(f"{single}{settings}")


def _sides(recipe: Recipe, sources: Sequence[Source]) -> str:
    """How many images and texts with findings a batch has: of unpaired data, one side may drown the other."""
    samples = [sample for source in sources for sample in source.samples]
    batch, weights = recipe.data.batch, np.zeros(len(samples))
    for pool in pools_of(sources, balance=recipe.data.balance):
        weights[pool.indices] = pool.weight
    known = np.array([bool(s.findings) for s in samples])
    sides = {
        "images": known & np.array([s.image is not None for s in samples]),
        "texts": known & np.array([bool(s.captions) for s in samples]),
    }
    counts = {side: batch * weights[mask].sum() / weights.sum() for side, mask in sides.items()}
    told = " and ".join(f"{count:.3g} {side}" for side, count in counts.items())
    few = min(counts, key=lambda side: counts[side])
    if counts[few] >= FEW * batch:
        return f"of findings a batch has about {told}"
    weight = f"{max(counts.values()) / counts[few]:.2g}"
    return f"of findings a batch has about {told}; write 'PATH?weight={weight}' for the {few} to have as many of them"


def _length(recipe: Recipe, sources: Sequence[Source], turn: Turn) -> str:
    """How long a stage is, and how fast it learns."""
    size = sum(len(s.samples) * s.weight for s in pick_sources(sources, turn.stage))
    made = at_stage(recipe, turn.number)
    batch, optim, plateau = made.data.batch, made.optim, turn.stage.plateau
    steps = made.fit.length(epoch_size=int(size), batch=batch)
    metric = None if plateau is None else plateau.metric or recipe.fit.metric or "the first metric of --val"
    until = "" if plateau is None else f" or until {metric} is no better for {plateau.patience} evaluations"
    epochs = steps * batch / max(size, 1)
    return f"batch {batch}, {steps} steps ({epochs:.1f} epochs){until}, {optim.method} at lr {optim.lr:g}"


def _learning(recipe: Recipe, stage: Stage) -> str:
    """What of the towers learns, where a stage differs from another."""
    towers = [("image", recipe.image), ("text", recipe.text)]
    told = [f"{name} {_part(stage.learning(tower))}" for name, tower in towers if tower is not None]
    size = [] if stage.size is None else [f"at {stage.size} px"]
    return ", ".join(told + size)


def _part(learning: Learning) -> str:
    if learning.never:
        return "locked with its head"
    words = {"all": "learns", "head": "locked but for its head", "none": "locked with its head"}[learning.part]
    blocks = "" if learning.from_block is None else f" from block {learning.from_block} on"
    names = " in part" if learning.only or learning.locked else ""
    factors = ", ".join(f"{rate:g}" for rate in learning.rates)
    return f"{words}{blocks}{names}" + (f" at rates x ({factors})" if learning.rates != (1.0,) else "")


def _told(tower: ImageSettings | TextSettings, init: str | None, *more: str) -> str:
    """A tower's name, where its weights are from unless the model that the run starts on says so, how it learns."""
    weights = [] if init and tower.weights == "random" else [tower.weights]
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
