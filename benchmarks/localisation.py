"""Does a word find its place? Composites of emoji with known places, FILIP's objective against CLIP's.

Both sides are one model in everything but the objective: a locked EfficientNet-Lite0 whose 49 places go through one
linear head, a locked MiniLM whose tokens do, the same composites, batches, steps and optimiser. Asked is where the best
place of a word or name lies: in the box of its emoji, or elsewhere. CLIP's whole vectors are means of the same
projections, so that its score is a sum over pairs of a place and a token, and each pair's share in it is CLIP's own
map. Maps of both sides are read in four ways, and each side is judged by its best.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import torch
from composites import CANVAS, Box, Composite, Layout, Placed, composites, drawings, sheet
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from unicl.compare import scores
from unicl.demo.emoji import EmojiSet, build, default_folder
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ContrastSettings
from unicl.space import Columns, Embedding, Keys, Parts, all_rows
from unicl.towers.heads import embed
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.parts import ImageParts, Look, TextParts, part_places, part_words
from unicl.towers.text import TextSettings, TextTower, build_tokenizer
from unicl.towers.weights.load import load_image_weights, load_text_weights
from unicl.train.optim import OptimSettings, adamw, learning_rate, take_step

IMAGE: Final = ImageSettings(
    name="tf_efficientnet_lite0", size=CANVAS, weights="package:efficientnet_lite0", locked=True, parts=ImageParts()
)
TEXT: Final = TextSettings(
    name="package:minilm", tokenizer="", weights="package:minilm", locked=True, context=64, parts=TextParts()
)
WIDTH: Final = 256
OPTIM: Final = OptimSettings(lr=2e-3, weight_decay=0.1, clip=None)
SYSTEMS: Final = {"CLIP": ContrastSettings(), "FILIP": ContrastSettings(similarity="tokenwise")}
TEST_SEED: Final = 1_000_003
SHOWN: Final = "new composites"
READINGS: Final = {
    "cosine": (False, False),
    "share of the score": (False, True),
    "name alone, cosine": (True, False),
    "name alone, share of the score": (True, True),
}
"""How a map is read. First: whether a name is read as a text of its own, and not as words of the caption. Second:
whether a place counts with the length of its projection, which a cosine takes away; a product is then a place's share
in CLIP's score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How much is trained and tested."""

    train: int = 4000
    test: int = 500
    steps: int = 300
    batch: int = 64


QUICK: Final = Length(train=256, test=40, steps=20, batch=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Composites as the locked image tower sees them: states of all places in half precision."""

    composites: tuple[Composite, ...]
    states: Tensor

    def look(self, rows: Tensor | slice) -> Look:
        """What the tower says of some of them."""
        values = self.states[rows].float()
        parts = Parts(values=values, mask=torch.ones(values.shape[:2], dtype=torch.bool))
        return Look(features=values.mean(1), parts=parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A word or a whole name of a composite: its direction in the shared space, and where its thing is."""

    vector: Tensor
    thing: Placed
    word: bool


def model_of(term: ContrastSettings, *, seed: int) -> TwoTowers:
    """A model with its packaged weights and random heads."""
    tokenizer = build_tokenizer(TEXT, texts=())
    torch.manual_seed(seed)
    model = TwoTowers(ModelSettings(image=IMAGE, text=TEXT, width=WIDTH, terms=(term,)), tokenizer=tokenizer)
    load_image_weights(model.image, source=IMAGE.weights, name=IMAGE.name)
    load_text_weights(text_tower(model), source=TEXT.weights, name=TEXT.name)
    return model


def text_tower(model: TwoTowers) -> TextTower:
    """The text tower, which all models here have."""
    assert model.text is not None
    return model.text


def shown(made: Sequence[Composite], tower: ImageTower, *, batch: int = 16) -> Shown:
    """Each picture through the locked tower, once."""
    tower.eval()
    looks = [tower.look(torch.stack([c.pixels for c in made[k : k + batch]])) for k in range(0, len(made), batch)]
    return Shown(composites=tuple(made), states=torch.cat([states(look).half() for look in looks]))


def states(of: Embedding | Look) -> Tensor:
    """``(N, P, D)``: the values of its parts."""
    assert of.parts is not None
    return of.parts.values


def train(model: TwoTowers, data: Shown, *, length: Length, seed: int) -> list[float]:
    """Train the heads; returns the loss of each step."""
    assert model.tokenizer is not None
    tower = text_tower(model).eval()
    with torch.no_grad():
        said = tower.look(*model.tokenizer([each.caption for each in data.composites]))
    model.train()
    optimiser = adamw(model, OPTIM)
    generator = torch.Generator().manual_seed(seed)
    passes = 1 + length.steps * length.batch // length.train
    order = torch.cat([torch.randperm(len(data.composites), generator=generator) for _ in range(passes)])
    losses = []
    for step in range(length.steps):
        rows = order[step * length.batch : (step + 1) * length.batch]
        optimiser.zero_grad(set_to_none=True)
        loss, _ = model.objective(columns(model.image(data.look(rows)), texts_of(tower, said, rows)))
        loss.backward()
        take_step(optimiser, rate=learning_rate(step, steps=length.steps, settings=OPTIM), seed=step)
        model.objective.clamp()
        losses.append(float(loss.detach()))
    return losses


def texts_of(tower: TextTower, said: Look, rows: Tensor) -> Embedding:
    """Some of the texts that a locked tower has read, through its head."""
    assert said.parts is not None
    assert tower.parts is not None
    parts = said.parts.select(rows)
    longest = int(parts.mask.sum(1).max())
    parts = Parts(values=parts.values[:, :longest], mask=parts.mask[:, :longest])
    return replace(embed(said.features[rows], tower.head), parts=tower.parts(parts, head=tower.head))


def columns(images: Embedding, texts: Embedding) -> Columns:
    """Each picture with its own caption."""
    keys = Keys.single(torch.arange(1, len(images.whole) + 1))
    counts = torch.ones(len(texts.whole))
    return Columns(images=images, image_keys=keys, texts=texts, text_keys=keys, text_counts=counts)


def in_caption(model: TwoTowers, composite: Composite, parts_QD: Tensor) -> list[Asked]:
    """The words and names of a caption: a word is the mean of its tokens, a name that of its words."""
    assert model.tokenizer is not None
    whole = TextParts(words=True)
    words = part_words(model.tokenizer, composite.caption, settings=whole)
    tokens, mask = model.tokenizer([composite.caption])
    place = part_places(tokens, mask, settings=whole, pieces=model.tokenizer.pieces)[0]
    vectors = [parts_QD[: len(place)][place == k].mean(0) for k in range(len(words))]
    meant = [composite.meant(word) for word in words]
    pairs = [(vector, thing) for vector, thing in zip(vectors, meant, strict=True) if thing is not None]
    asked = [Asked(vector=vector, thing=thing, word=True) for vector, thing in pairs]
    for thing in composite.placed:
        own = torch.stack([vector for vector, each in pairs if each is thing])
        asked.append(Asked(vector=own.mean(0), thing=thing, word=False))
    return asked


def alone(model: TwoTowers, made: Sequence[Composite], *, tokens: bool) -> list[list[Asked]]:
    """Names as texts of their own, by their whole vectors or by the mean of their ``tokens``, as the score has them."""
    names = list(dict.fromkeys(thing.name for composite in made for thing in composite.placed))
    texts = model.encode_texts(names)
    assert texts.parts is not None
    real = texts.parts.mask[..., None]
    vectors = (texts.parts.values * real).sum(1) / real.sum(1) if tokens else texts.whole
    of = dict(zip(names, vectors, strict=True))
    return [[Asked(vector=of[t.name], thing=t, word=False) for t in composite.placed] for composite in made]


def measured(model: TwoTowers, test: Shown) -> tuple[dict[str, float], list[list[int]]]:
    """Every number of a trained model on one set of composites; and of each, where the best places of its names are."""
    model.eval()
    with torch.no_grad():
        looks = [test.look(rows) for rows in torch.split(torch.arange(len(test.composites)), 100)]
        images = all_rows([model.image(look) for look in looks], width=WIDTH, features=0, parts=True)
        lengths = torch.cat([model.image.head(states(look)).norm(dim=2, keepdim=True) for look in looks])
    texts = model.encode_texts([composite.caption for composite in test.composites])
    said = [in_caption(model, composite, states(texts)[k]) for k, composite in enumerate(test.composites)]
    named = alone(model, test.composites, tokens=model.objective.settings[0] == SYSTEMS["FILIP"])
    found: dict[str, float] = {}
    for reading, (by_name, by_length) in READINGS.items():
        places = states(images) * (lengths if by_length else 1)
        found |= shares(places, named if by_name else said, reading)
    best = [[best_of(p, one) for one in asked if not one.word] for p, asked in zip(states(images), said, strict=True)]
    return found | recalls(model, images, texts), best


def shares(places_NPD: Tensor, asked: Sequence[Sequence[Asked]], reading: str) -> dict[str, float]:
    """How many words and names have their best place where it should be, in the box of the thing or in its cell."""
    hits: dict[str, list[bool]] = {}
    for places_PD, some in zip(places_NPD, asked, strict=True):
        for one in some:
            at = centre(best_of(places_PD, one), places=len(places_PD))
            unit = "words" if one.word else "names"
            hits.setdefault(f"{reading}: {unit}, box", []).append(inside(at, one.thing.box))
            hits.setdefault(f"{reading}: {unit}, cell", []).append(inside(at, one.thing.cell))
    return {name: fmean(each) for name, each in hits.items()}


def best_of(places_PD: Tensor, one: Asked) -> int:
    """The number of the best place."""
    return int((places_PD @ one.vector).argmax())


def recalls(model: TwoTowers, images: Embedding, texts: Embedding) -> dict[str, float]:
    """How often a picture finds its caption among all, and a caption its picture."""
    rows = torch.arange(len(images.whole))
    with torch.no_grad():
        tables = [scores(model, images.select(some), texts, view="instances") for some in torch.split(rows, 50)]
    by_image, by_text = (torch.cat(table) for table in zip(*tables, strict=True))
    best = {"image to text R@1": by_image.argmax(1), "text to image R@1": by_text.argmax(0)}
    return {name: float((found == rows).float().mean()) for name, found in best.items()}


def centre(place: int, *, places: int) -> tuple[float, float]:
    """The middle of a place of a square map, in pixels of the canvas."""
    side = round(places**0.5)
    row, column = divmod(place, side)
    return (column + 0.5) * CANVAS / side, (row + 0.5) * CANVAS / side


def inside(at: tuple[float, float], box: Box) -> bool:
    """Whether a point lies in a box."""
    return box[0] <= at[0] < box[2] and box[1] <= at[1] < box[3]


def chance(test: Shown) -> dict[str, float]:
    """What a random place finds, and what could be found at most: some boxes have no place's middle in them."""
    number = test.states.shape[1]
    at = [centre(place, places=number) for place in range(number)]
    things = [thing for composite in test.composites for thing in composite.placed]
    hits = [sum(inside(each, thing.box) for each in at) for thing in things]
    return {
        "a random place, box": fmean(hit / number for hit in hits),
        "a random place, cell": fmean(sum(inside(each, thing.cell) for each in at) / number for thing in things),
        "at most, box": fmean(hit > 0 for hit in hits),
    }


def tests_of(emoji: EmojiSet, tower: ImageTower, *, number: int) -> dict[str, Shown]:
    """The composites that models are asked about; no training composite is among them."""
    plans = {
        SHOWN: (emoji.train, Layout()),
        "another artist": (emoji.seen, Layout()),
        "things never seen": (emoji.unseen, Layout()),
        "3 x 3 cells": (emoji.train, Layout(cells=3, fewest=4, most=6)),
    }
    return {
        name: shown(composites(drawings(table), number=number, seed=TEST_SEED + k, layout=layout), tower)
        for k, (name, (table, layout)) in enumerate(plans.items())
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Every seed's numbers by system, set and name; chance by set; and the first seed's picture."""

    found: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
    chance: Mapping[str, Mapping[str, float]]
    losses: Mapping[str, list[float]]
    seconds: Mapping[str, list[float]]
    picture: Image.Image


def run(length: Length, *, seeds: int, console: Console) -> Outcome:
    """Train and test both systems on all seeds."""
    emoji = build(default_folder())
    known, tower = drawings(emoji.train), model_of(SYSTEMS["CLIP"], seed=0).image
    tests = tests_of(emoji, tower, number=length.test)
    found: dict[str, dict[str, dict[str, list[float]]]] = {system: {name: {} for name in tests} for system in SYSTEMS}
    losses: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    best: dict[str, list[list[int]]] = {}
    for seed in range(seeds):
        data = shown(composites(known, number=length.train, seed=seed), tower)
        for system, term in SYSTEMS.items():
            began = time.perf_counter()
            model = model_of(term, seed=seed)
            losses[system].append(fmean(train(model, data, length=length, seed=seed)[-20:]))
            seconds[system].append(time.perf_counter() - began)
            console.print(f"seed {seed}, {system}: {seconds[system][-1]:.0f} s")
            for name, test in tests.items():
                numbers, places = measured(model, test)
                for key, value in numbers.items():
                    found[system][name].setdefault(key, []).append(value)
                if name == SHOWN:
                    best.setdefault(system, places)
    by_chance = {name: chance(test) for name, test in tests.items()}
    picture = drawn(tests[SHOWN].composites, best)
    return Outcome(found=found, chance=by_chance, losses=losses, seconds=seconds, picture=picture)


def drawn(made: Sequence[Composite], best: Mapping[str, Sequence[Sequence[int]]], *, number: int = 4) -> Image.Image:
    """The first composites of four things, and the best place of each name by each model."""
    rows = [k for k, composite in enumerate(made) if len(composite.placed) == 4][:number]
    return sheet([made[k] for k in rows], {name: [each[k] for k in rows] for name, each in best.items()}, side=7)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; one value has none."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """The claims that the README shows, each side in its best reading; spreads and chance stand in the names."""
    return [
        claim(f"{unit} that find their emoji, {name}", f"{unit}, box", name, outcome)
        for name in outcome.chance
        for unit in ("words", "names")
    ]


def claim(what: str, key: str, name: str, outcome: Outcome) -> dict[str, Any]:
    """One row."""
    keys = [f"{reading}: {key}" for reading in READINGS]
    (ours, own), (peer, other) = (
        max(spread(outcome.found[system][name].get(each, [0.0])) for each in keys) for system in ("FILIP", "CLIP")
    )
    random = outcome.chance[name]["a random place, box"]
    what = f"{what} (± {own:.3f} and {other:.3f}, chance {random:.3f})"
    return {"what": what, "ours": ours, "peer": peer, "peer name": "CLIP", "ratio": ours / peer, "wanted": 1}


def show(outcome: Outcome, console: Console) -> None:
    """One table a set of composites."""
    recall = ("image to text R@1", "text to image R@1")
    for name, by_chance in outcome.chance.items():
        units = ("words, box", "words, cell", "names, box", "names, cell")
        table = Table("system", "reading", *units, *recall, title=name, title_justify="left")
        for system, sets in outcome.found.items():
            for reading in READINGS:
                keys = [f"{reading}: {unit}" for unit in units] + [key for key in recall if reading == "cosine"]
                table.add_row(system, reading, *(shape(sets[name].get(key)) for key in keys))
        console.print(table)
        console.print(", ".join(f"{what} {share:.3f}" for what, share in by_chance.items()))


def shape(values: Sequence[float] | None) -> str:
    """A mean and its deviation as text."""
    return "" if values is None else "{:.3f} ± {:.3f}".format(*spread(values))


def main() -> None:
    """Measure everything, write ``results/localisation.json`` and draw four composites."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed, few composites and steps; writes nothing")
    parser.add_argument("--out", type=Path, default=here / "results" / "localisation.json")
    parser.add_argument("--picture", type=Path, default=here.parent / "docs" / "img" / "localisation.png")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    length, seeds = (QUICK, 1) if wanted.quick else (Length(), wanted.seeds)
    outcome = run(length, seeds=seeds, console=Console(stderr=True))
    show(outcome, Console(width=160))
    if wanted.quick:
        return
    result = {
        "seeds": seeds,
        "length": asdict(length),
        "load after": [round(average, 1) for average in os.getloadavg()],
        "versions": {name: version(name) for name in ("unicl", "torch", "timm", "transformers")},
        "chance": outcome.chance,
        "loss at the end": outcome.losses,
        "seconds of training": outcome.seconds,
        "mean, deviation, each seed": {
            system: {
                name: {key: [round(x, 4) for x in (*spread(v), *v)] for key, v in of.items()}
                for name, of in sets.items()
            }
            for system, sets in outcome.found.items()
        },
        "rows": rows(outcome),
    }
    wanted.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    wanted.picture.parent.mkdir(parents=True, exist_ok=True)
    outcome.picture.save(wanted.picture, optimize=True)


if __name__ == "__main__":
    main()
