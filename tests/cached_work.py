"""Models, batches and an uncached reference for tests of cached steps; its workers are processes of their own."""

import os
from dataclasses import replace

import torch

from tiny import hide_of, tiny
from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Place, Stream
from unicl.run import build_model
from unicl.space import Columns, all_rows
from unicl.towers.text import build_tokenizer
from unicl.train.cached import cached_step
from unicl.train.chunk import find_chunk
from unicl.train.compute import ComputeSettings
from unicl.train.parallel import Parallel, gathered
from unicl.train.ranks import Ranks, start
from unicl.train.step import plain_step

CHUNK = 3
LOCKED = {"locked": True}
SMALL = ComputeSettings(keep_mb=0)
ALONE = Ranks()


CHUNKED = ("cross_entropy", "filip", "itl", "medclip", "supcon", "virtex")
"""Recipes whose columns, parts and terms are unlike, for several processes."""


def made(name, data, *, batch=13, tower="test_vit", image=None, text=None, place=Place()):
    """A model of a recipe in float64, and one batch; ``image`` and ``text`` change fields of the towers."""
    recipe = tiny(name, batch=batch, tower=tower)
    recipe = replace(recipe, image=replace(recipe.image, **(image or {})))
    if recipe.text is not None:
        recipe = replace(recipe, text=replace(recipe.text, **(text or {})))
    sources = load_all(data)
    captions = [caption for source in sources for sample in source.samples for caption in sample.captions]
    read = recipe.text or recipe.words
    tokenizer = None if read is None else build_tokenizer(read, texts=[*captions, "red green blue photo"])
    model = build_model(recipe, sources, tokenizer=tokenizer).double().train()
    stream = Stream(
        sources,
        recipe.data,
        texts=class_texts(recipe.data.prompts),
        tokenizer=tokenizer,
        size=32,
        seed=3,
        quarantine=Quarantine(limit=0),
        place=place,
        hide=hide_of(recipe, sources, tokenizer),
    )
    return model, stream.batch(1)


def plain(model, batch, **more):
    return plain_step(model, batch, ranks=more.pop("ranks", ALONE), precision=more.pop("precision", "fp32"), **more)


def cached(model, batch, chunk, **more):
    ranks, precision = more.pop("ranks", ALONE), more.pop("precision", "fp32")
    return cached_step(model, batch, ranks=ranks, precision=precision, chunk=chunk, **more)


def uncached(model, batch, chunk):
    """A step over the same chunks, all of them in one graph."""
    images = [model.image(part) for part in _parts(batch.images, chunk)]
    views = [] if batch.views is None else [model.image(part) for part in _parts(batch.views, chunk)]
    texts = None
    if model.text is not None:
        lengths = batch.token_mask.sum(1)
        order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
        said = []
        for rows in _parts(torch.tensor(order), chunk):
            longest = int(lengths[rows].max())
            said.append(model.text(batch.tokens[rows, :longest], batch.token_mask[rows, :longest]))
        place = [order.index(row) for row in batch.text_index.tolist()]
        texts = _joined(said).select(torch.tensor(place))
    columns = Columns(
        images=_joined(images),
        views=_joined(views) if views else None,
        image_keys=batch.image_keys,
        texts=texts,
        text_keys=batch.text_keys,
        text_counts=batch.text_counts,
        captions=batch.captions,
    )
    loss, _ = model.objective(columns)
    loss.backward()
    return loss.detach()


def gradients(model):
    """All gradients that there are, by name; takes them off the model."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(found, wanted, *, rtol=1e-9, atol=1e-12):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name} {text}"
        )


def cut(batch, *, images, texts):
    """The part of a batch with some of its images and some of its text rows, both given as masks."""
    return replace(
        batch,
        images=batch.images[images],
        views=None if batch.views is None else batch.views[images],
        image_keys=batch.image_keys.select(images),
        tokens=batch.tokens if texts.any() else batch.tokens[:0],
        token_mask=batch.token_mask if texts.any() else batch.token_mask[:0],
        text_index=batch.text_index[texts],
        text_keys=batch.text_keys.select(texts),
        text_counts=batch.text_counts[texts],
    )


def one_sided(batch, *, rank):
    """The images on rank 0 and the texts on rank 1."""
    images = torch.full((len(batch.images),), rank == 0)
    return cut(batch, images=images, texts=torch.full((len(batch.text_index),), rank == 1))


def ranks_work(rank, data, folder, port):
    """Loss and gradients of this rank: each recipe, and a batch with nothing of one kind on each rank."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    found = {}
    with start("cpu") as ranks:
        for name in CHUNKED:
            model, batch = made(name, data, place=Place(rank=rank, ranks=2))
            found[name] = (cached(model, batch, CHUNK, ranks=ranks).loss.item(), gradients(model))
        model, batch = made("clip", data)
        part = one_sided(batch, rank=rank)
        found["one-sided"] = (cached(model, part, CHUNK, ranks=ranks).loss.item(), gradients(model))
        free = 300_000_000 if rank else 12_000_000
        found["chunk"] = find_chunk(model, part, ranks=ranks, precision="fp32", free=free, compute=SMALL).chunk
        for kind in ("ddp", "fsdp"):
            found[kind] = parallel_work(kind, data, ranks)
        found["locked"] = parallel_work("fsdp", data, ranks, image=LOCKED)
        found["parts"] = parallel_work("fsdp", data, ranks, name="filip", change=one_sided)
    torch.save(found, f"{folder}/{rank}.pt")


def parallel_work(kind, data, ranks, *, name="itl", image=None, change=None):
    """A cached step of a model whose gradients travel, or whose weights are parted, while it goes on."""
    if change is None:
        model, batch = made(name, data, place=Place(rank=ranks.rank, ranks=2), image=image)
    else:
        model, batch = made(name, data, image=image)
        batch = change(batch, rank=ranks.rank)
    parallel = Parallel(model, ranks=ranks, parallel=kind)
    loss = cached(model, batch, CHUNK, ranks=ranks, sync=parallel.sync).loss.item()
    parallel.finish()
    found = {name: gathered(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    parallel.close()
    return loss, found


def _parts(rows, chunk):
    return rows.tensor_split(-(-len(rows) // chunk))


def _joined(embeddings):
    parts = embeddings[0].parts is not None
    return all_rows(embeddings, width=0, features=0, parts=parts)
