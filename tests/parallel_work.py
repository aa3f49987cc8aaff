"""What the processes of the tests of shared training do; a module of its own, since each process imports it anew."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tiny import tiny
from unicl.data.collate import Collator, Drawn, class_texts
from unicl.data.image import decode, fit
from unicl.data.sources import load_all
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.cached import cached_step
from unicl.train.compute import ComputeSettings
from unicl.train.optim import Average, OptimSettings, adamw, clip, take_step
from unicl.train.parallel import Parallel, gathered, share_buffers
from unicl.train.ranks import Ranks, start
from unicl.train.record import Progress, Record
from unicl.train.state import whole_state
from unicl.train.step import plain_step

NAMES = ("itl", "supcon", "cross_entropy")
MODES = ("ddp", "fsdp")
OPTIM = OptimSettings(lr=1e-2, clip=0.05, warmup=0)
STEPS = 3


class Training:
    """A small model in float64 that learns from rows given by hand; ``ranks`` each take their part of them."""

    def __init__(self, name, data, *, ranks=Ranks(), parallel="ddp", average=0.9):
        recipe = tiny(name)
        sources = load_all(data)
        texts = ["a red green blue square photo number", *(str(k) for k in range(9))]
        tokenizer = None if recipe.text is None else build_tokenizer(recipe.text, texts=texts)
        self.name, self.ranks = name, ranks
        self.model = build_model(recipe, sources, tokenizer=tokenizer).double().train()
        self.parallel = Parallel(self.model, ranks=ranks, parallel=parallel, bucket_mb=0.02)
        self.optimiser = adamw(self.model, OPTIM)
        self.average = Average(self.model, decay=average) if average else None
        self.collator = Collator(mode=recipe.data.keys, texts=class_texts("en-short"), tokenizer=tokenizer)
        self.samples = [(source.name, sample) for source in sources for sample in source.samples]

    def rows(self, step):
        """The rows of each of two ranks: unequal; then no texts on the first; then no images on the first."""
        every = [self.drawn(*self.samples[k % len(self.samples)]) for k in range(7 * step, 7 * step + 13)]
        first, second = every[:4], every[4:]
        if step % 3 == 1:
            bare = [replace(d, sample=replace(d.sample, captions=(), labels=()), caption=None) for d in first]
            return [bare, second]
        if step % 3 == 2 and self.name != "supcon":
            return [[replace(d, sample=replace(d.sample, image=None), image=None) for d in first], second]
        return [first, second]

    def drawn(self, source, sample):
        image = fit(decode(sample.image), size=32)
        caption = sample.captions[0] if sample.captions else None
        view = image.flip(2) if self.name == "supcon" else None
        return Drawn(sample=sample, source=source, caption=caption, image=image, view=view)

    def batch(self, step):
        first, second = self.rows(step)
        shares = {1: [first + second], 2: [first, second], 3: [first, second[:6], second[6:]]}
        return self.collator(shares[self.ranks.size][self.ranks.rank], rng_key=(0, step))

    def step(self, step, *, chunk=None):
        self.optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(step)
        given = {"ranks": self.ranks, "precision": "fp32", "compute": ComputeSettings(keep_mb=1)}
        if chunk is None:
            result = plain_step(self.model, self.batch(step), **given, sync=self.parallel.sync)
        else:
            result = cached_step(self.model, self.batch(step), **given, chunk=chunk, sync=self.parallel.sync)
        self.parallel.finish()
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        gradients = {n: gathered(g).clone() for n, g in gradients.items()}
        norm = clip(self.model.parameters(), norm=OPTIM.clip)
        take_step(self.optimiser, rate=OPTIM.lr, seed=step)
        self.model.objective.clamp()
        if self.average is not None:
            self.average.update(self.model, step=step)
        return {"loss": result.loss, "norm": norm, **{f"gradient {n}": g for n, g in gradients.items()}}

    def state(self):
        """All that a checkpoint has to bring back, in whole."""
        names = {p: n for n, p in self.model.named_parameters()}
        moments = {f"{names[p]} {k}": v for p, each in self.optimiser.state.items() for k, v in each.items()}
        average = {} if self.average is None else self.average.state
        kinds = {"weight": self.model.state_dict(), "moment": moments, "average": average}
        whole = whole_state({f"{kind} {n}": v for kind, each in kinds.items() for n, v in each.items()}, keep=True)
        return {name: value.clone() for name, value in whole.items()}

    def embedded(self):
        """What each rank sees alone with the whole model, a number of times that differs between ranks."""
        with self.parallel.whole(), torch.no_grad():
            pixels = torch.full((2, 3, 32, 32), 99, dtype=torch.uint8)
            return [self.model.image(pixels).whole for _ in range(1 + self.ranks.rank)][-1]


def trained(name, data, *, ranks=Ranks(), parallel="ddp", chunk=None, out=None):
    """All numbers of a few steps, and a checkpoint of the end."""
    training = Training(name, data, ranks=ranks, parallel=parallel)
    found = {}
    for step in range(STEPS):
        found |= {f"{step} {n}": v.detach().clone() for n, v in training.step(step, chunk=chunk).items()}
    found |= training.state() | {"embedded": training.embedded()}
    if out is not None:
        record = Record(out=out)
        record.save(
            training.model, training.optimiser, progress=Progress(step=STEPS), average=training.average, ranks=ranks
        )
    training.parallel.close()
    return found


def resumed(name, data, *, out, ranks=Ranks(), parallel="ddp"):
    """What a checkpoint brings back, and the next step."""
    training = Training(name, data, ranks=ranks, parallel=parallel)
    Record(out=out).load(training.model, training.optimiser, average=training.average, ranks=ranks)
    found = training.state()
    return found | {f"next {n}": v for n, v in training.step(STEPS).items()}


def join(rank, size, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)


def train_work(rank, data, folder, port):
    """Each of two processes trains and saves."""
    join(rank, 2, port)
    with start("cpu") as ranks:
        torch.save(train_all(data, Path(folder), ranks=ranks), Path(folder) / f"{rank}.pt")


def resume_work(rank, data, folder, port):
    """Each of three processes goes on from each checkpoint, in parts where it was in whole."""
    folder = Path(folder)
    join(rank, 3, port)
    with start("cpu") as ranks:
        found = {
            saved: resumed("itl", data, out=folder / saved, ranks=ranks, parallel=mode)
            for saved, mode in zip(MODES, reversed(MODES), strict=True)
        }
        torch.save(found, folder / f"resumed-{rank}.pt")


def train_all(data, folder, *, ranks):
    found = {}
    for mode in MODES:
        for name in NAMES:
            out = folder / mode if name == "itl" else None
            found[f"{mode} {name}"] = trained(name, data, ranks=ranks, parallel=mode, out=out)
        found[f"{mode} itl in chunks"] = trained("itl", data, ranks=ranks, parallel=mode, chunk=3)
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(ranks.rank + 1)
    share_buffers(norm, ranks=ranks)
    return found | {"buffers": {"mean": norm.running_mean}}
