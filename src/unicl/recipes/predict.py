"""Systems that learn pictures by writing their captions: VirTex."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.image import Augment, Frame
from unicl.data.stream import StreamSettings
from unicl.model import ZeroShotSettings
from unicl.objective.terms import BagSettings, CaptionSettings, ClassifySettings, TermSettings
from unicl.recipes.recipe import Recipe, Size, chosen, known
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts
from unicl.towers.text import TextSettings
from unicl.train.compute import ComputeSettings
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings

Task = Literal["bicaptioning", "captioning", "masked", "tokens", "labels"]


def virtex(
    *, task: Task = "bicaptioning", towers: str = "laptop", width: int | None = None, batch: int | None = None
) -> Recipe:
    """VirTex (Desai and Johnson 2021): an image tower learns as a decoder writes captions from the places of pictures.

    ``task``: the caption from its start and from its end ("bicaptioning"), from its start only ("captioning"), its
    hidden words ("masked"), its words in no order ("tokens"), or no caption but "labels". ``towers``: laptop, or
    resnet50 from random weights as published. ``width``: of the decoder.
    """
    size = chosen(VIRTEX, towers)
    known(task, among=get_args(Task), argument="task")
    writes = task in ("bicaptioning", "captioning", "masked")
    # The decoder projects the places itself, so that its width is its own.
    parts = ImageParts(head="none", unit=False) if writes else None
    return Recipe(
        name="virtex",
        terms=(_term(task, width=width or size.width),),
        data=StreamSettings(
            keys="label" if task == "labels" else "sample",
            batch=batch or size.batch,
            augment=size.augment,
            captions=task != "labels",
            mirror=0.5,
        ),
        image=replace(size.image, head="none", parts=parts),
        text=None,
        words=None if task == "labels" else size.text,
        width=None,
        zero_shot=ZeroShotSettings(ensemble="embeddings" if task in ("masked", "labels") else "likelihood"),
        optim=size.optim,
        fit=size.fit,
        compute=ComputeSettings(scores="bf16" if size.fit.precision == "bf16" else "fp32"),
    )


def _term(task: Task, *, width: int) -> TermSettings:
    match task:
        case "tokens":
            return BagSettings()
        case "labels":
            return ClassifySettings()
        case _:
            return CaptionSettings(task=task, width=width)


UNDECAYED: Final = ("decoder.embedding.norm.", "transformer.layer.*.bias", "transformer.layer.*LayerNorm")
"""What does not decay: norms and biases inside the decoder's embedding and transformers, and nothing else."""

VIRTEX: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(text=TextSettings(vocab=8192, context=30)),
        "resnet50": Size(
            image=ImageSettings(name="resnet50.tv_in1k", frame=Frame(scale=256, interpolation="bilinear")),
            text=TextSettings(vocab=10_000, context=30),
            width=2048,
            batch=256,
            augment=Augment(crop=(0.2, 1.0), jitter=1.0),
            optim=OptimSettings(
                method="sgd",
                lr=0.2,
                rates={"objective.": 1e-3 / 0.2},
                weight_decay=1e-4,
                undecayed=UNDECAYED,
                lookahead=5,
                warmup=10_000,
                clip=10.0,
            ),
            fit=FitSettings(steps=500_000, precision="bf16"),
        ),
    }
)
"""VirTex's widest decoder of one layer (bicaptioning L1 H2048 of its model zoo) and its training, as released."""
