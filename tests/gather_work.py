"""What the processes of the test of exchanging rows do; apart from the rest, so that each process starts quickly."""

import os

import numpy as np
import torch

from pair_cases import KINDS, case, compare, token_wise
from unicl.objective import blockwise, tiled
from unicl.objective.peers import exchanged, gathered, own_rows, share, total
from unicl.objective.plan import Tiling
from unicl.similarity.tokenwise import tokenwise
from unicl.space import Columns, Embedding, Keys
from unicl.train.ranks import Ranks, average_gradients, gather_objects, start

ROWS = (3, 0, 2)
"""Rows of each of three processes: one has none."""
IMAGES, TEXTS = (5, 0, 6), (2, 5, 1)
SQUARE = (5, 0, 6)


def comparisons():
    """Every loss over every kind of target, gathered and in a ring, by name."""
    for kind in KINDS:
        texts = SQUARE if kind == "paired" else TEXTS
        for exchange in ("gather", "ring"):
            tiling = Tiling(rows=2, keep=100, exchange=exchange)
            options = {"smoothing": 0.1, "tiling": tiling}
            for images in (IMAGES, tuple(reversed(IMAGES)) if kind == "paired" else (2, 3, 1)):
                sizes = (images, images if kind == "paired" else texts)
                yield f"softmax {kind} {exchange} {images}", blockwise.softmax, kind, sizes, None, options
                if kind not in ("cosine", "dot"):
                    yield f"sigmoid {kind} {exchange} {images}", blockwise.sigmoid, kind, sizes, None, options
            scores = [(tokenwise, "fp32"), (tokenwise, "bf16")] if kind in ("paired", "typed") else []
            for score, operands in (*scores, (token_wise, "fp32")):
                tiling = Tiling(rows=4, keep=2000, exchange=exchange, operands=operands)
                options = {"smoothing": 0.1, "tiling": tiling, "score": score}
                name = f"{kind} {exchange} {score.__name__} {operands}"
                yield f"tiled softmax {name}", tiled.softmax, kind, (IMAGES, texts), (3, 4), options
                if score is tokenwise:
                    yield f"tiled sigmoid {name}", tiled.sigmoid, kind, (IMAGES, texts), (3, 4), options


def compared(*, peers, alone):
    """The values and gradients of all comparisons for this process, or for one that has all rows."""
    results = {}
    for name, loss, kind, (images, texts), parts, options in comparisons():
        one = case(np.random.default_rng(len(name)), kind, images=sum(images), texts=sum(texts), parts=parts)
        sizes = ((sum(images),), (sum(texts),)) if alone else (images, texts)
        value, gradients = compare(loss, one, peers=peers, sizes=sizes, **options)
        results[name] = [value, *gradients]
    return results


def view_columns(rank=None):
    """Two views of eleven images: this process's, or all."""
    rng = np.random.default_rng(5)
    whole = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(2, 11, 6))), dim=2)
    keys = torch.tensor(rng.integers(0, 4, 11))
    place = slice(0, 11) if rank is None else own_rows(IMAGES, rank=rank)
    images, views = (w[place].clone().requires_grad_() for w in whole)
    made = Columns(
        images=Embedding(whole=images, features=images),
        views=Embedding(whole=views, features=views),
        image_keys=Keys.single(keys[place]),
        texts=None,
        text_keys=Keys.empty(0),
        text_counts=torch.zeros(0).double(),
    )
    return made, (images, views)


def viewed(*, peers, rank=None):
    """SupCon's loss and gradients over all views; key 0 is no key."""
    from unicl.objective.terms import Objective, ViewsSettings
    from unicl.similarity.scale import ScaleSettings

    results = {}
    for exchange in ("gather", "ring"):
        objective = Objective([ViewsSettings(scale=ScaleSettings(init=10.0))], features=6).double()
        columns, leaves = view_columns(rank)
        value, _ = objective(columns, peers=peers, tiling=Tiling(rows=3, exchange=exchange))
        value.backward()
        scale = objective.scales()["views"].log_scale.grad
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        results[exchange] = [value.detach(), *gradients, scale]
    return results


def classified(*, peers, rank=None):
    """A linear layer's losses and gradients by name; findings of an image may be asked for in part, or not at all."""
    from unicl.objective.classify import Classify, ClassifySettings, ClassName
    from unicl.space import TextType

    rng = np.random.default_rng(7)
    place = slice(0, 11) if rank is None else own_rows(IMAGES, rank=rank)
    features, values = torch.tensor(rng.normal(size=(11, 6))), rng.choice([-1.0, 0.0, 0.5, 1.0], (11, 3))
    settings = {
        "softmax": ClassifySettings(),
        "labels": ClassifySettings(loss="sigmoid"),
        "findings": ClassifySettings(loss="sigmoid", of="findings", unmentioned="ignored"),
    }
    results = {}
    for name, each in settings.items():
        known = torch.tensor(np.abs(values) if name != "findings" else values)[place]
        rows, classes = known.nonzero().unbind(1)
        type = TextType.FINDING if name == "findings" else TextType.CLASS
        kept = Keys(
            rows=rows,
            keys=classes + 1,
            types=torch.full_like(rows, int(type)),
            weights=known[rows, classes].float(),
            size=len(known),
        )
        torch.manual_seed(0)
        layer = Classify(each, features=6, classes=[ClassName(label=str(k), key=k + 1) for k in range(3)]).double()
        leaf = features[place].clone().requires_grad_()
        made = Columns(
            images=Embedding(whole=leaf[:, :0], features=leaf),
            image_keys=kept,
            texts=None,
            text_keys=Keys.empty(0),
            text_counts=torch.zeros(0).double(),
        )
        value = layer(share(made, peers=peers))
        value.backward()
        results[name] = [value.detach(), leaf.grad, layer.head.weight.grad, layer.head.bias.grad]
    return results


def columns(rows, *, first):
    whole = torch.arange(first, first + rows, dtype=torch.float64)[:, None] * torch.ones(1, 4, dtype=torch.float64)
    embedding = Embedding(whole=whole, features=whole * 2)
    keys = Keys.single(torch.arange(first, first + rows) + 100)
    return Columns(
        images=embedding, image_keys=keys, texts=embedding, text_keys=keys, text_counts=torch.ones(rows).double()
    )


def basics(rank, ranks):
    """The exchanges themselves, and the averaging of gradients."""
    own = columns(ROWS[rank], first=sum(ROWS[:rank]))
    shared = share(own, peers=ranks)
    weight = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    unused = torch.nn.Parameter(torch.zeros(2))
    made = gathered(own.images.whole @ weight, sizes=ROWS, peers=ranks)
    (made.square().sum() * weight.sum()).backward()
    first, weight.grad = weight.grad, None
    everyones = exchanged(own.images.whole @ weight, sizes=ROWS, peers=ranks)
    total((everyones * (rank + 1)).square().sum(), peers=ranks).backward()
    parameters = [torch.nn.Parameter(weight.detach()), torch.nn.Parameter(weight.detach()), unused]
    parameters[0].grad, parameters[1].grad = first, weight.grad
    average_gradients(parameters, ranks=ranks)
    return {
        "rows": shared.image_keys.rows,
        "keys": shared.image_keys.keys,
        "counts": shared.text_counts,
        "sizes": torch.tensor(shared.image_sizes),
        "gradient": parameters[0].grad,
        "exchanged": parameters[1].grad,
        "unused": unused.grad,
        "any": torch.tensor([ranks.any(rank == 1), ranks.any(False)]),
        "objects": torch.tensor(gather_objects(rank, ranks=ranks)),
    }


def gather_work(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    with start("cpu") as ranks:
        assert isinstance(ranks, Ranks)
        result = {
            "basics": basics(rank, ranks),
            "compared": compared(peers=ranks, alone=False),
            "viewed": viewed(peers=ranks, rank=rank),
            "classified": classified(peers=ranks, rank=rank),
        }
        torch.save(result, f"{folder}/{rank}.pt")
