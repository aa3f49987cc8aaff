"""What the processes of the tests of kept features do; each imports it anew."""

import os
import time
from dataclasses import replace

import torch

import unicl.train.features as features
from tiny import tiny
from unicl.data.sources import load_all
from unicl.run import build_model
from unicl.train.ranks import Ranks, start


def samples_of(data):
    return [sample for source in load_all(data) for sample in source.samples]


def small_model(data, name="supcon", tower="test_vit", **image):
    """A model without texts, its image tower locked."""
    recipe = tiny(name, tower=tower)
    recipe = replace(recipe, image=replace(recipe.image, locked=True, **image))
    return build_model(recipe, load_all(data), tokenizer=None)


def rows_of(data, folder, *, model=None, ranks=None, **options):
    """The rows of all samples, stacked; NaN where there is none."""
    kept = features.kept_features(
        model or small_model(data), samples_of(data), folder, ranks=ranks or Ranks(), **options
    )
    found = [kept[number] for number in range(len(kept.samples))]
    width = next(len(row) for row in found if row is not None)
    return torch.stack([torch.full((width,), torch.nan) if row is None else row for row in found])


def rank_work(rank, data, folder, port, ranks):
    """One of several processes that fill one folder together."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    torch.set_num_threads(1)
    model, seen = small_model(data), []
    model.image.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    with start("cpu") as group:
        torch.save({"rows": rows_of(data, folder / "kept", model=model, ranks=group), "seen": seen}, folder / f"{rank}")


def slow_work(data, folder):
    """Look at two pictures at a time, each in a shard of its own, slowly enough to be killed on the way."""
    torch.set_num_threads(1)
    features.MOST_ROWS = 2
    model = small_model(data)
    model.image.backbone.register_forward_hook(lambda *_: time.sleep(0.1))
    rows_of(data, folder, model=model, batch=2)
