"""Swin transformers of Microsoft, timm, transformers and torchvision as timm's: sizes from shapes, rules of names."""

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.heads import HeadKind, Option
from unicl.towers.image import ImageSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused

SIZE: Final = 224
PATCH: Final = 4
_NAMED: Final = (
    (96, (2, 2, 6, 2), (3, 6, 12, 24), "swin_tiny_patch4_window7_224"),
    (96, (2, 2, 18, 2), (3, 6, 12, 24), "swin_small_patch4_window7_224"),
    (128, (2, 2, 18, 2), (4, 8, 16, 32), "swin_base_patch4_window7_224"),
    (192, (2, 2, 18, 2), (6, 12, 24, 48), "swin_large_patch4_window7_224"),
)
_BLOCK: Final = r"image\.backbone\.layers\.{stage}\.blocks\.(\d+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinNames:
    """Where a layout keeps what the sizes of a Swin are read from.

    ``patches``: the weight of the patch embedding. ``blocks``: what stands before the number of a block, with {stage},
    or {odd} for twice the stage and one; ``table``: the relative position bias of a block. ``mask``: the buffer of the
    first shifted block, which tells the side of the images; "" if there is none.
    """

    patches: str
    blocks: str
    table: str = "attn.relative_position_bias_table"
    mask: str = ""

    def before(self, stage: int) -> str:
        """What stands before the numbers of the blocks of a stage."""
        return self.blocks.format(stage=stage, odd=2 * stage + 1)


def names(kind: str, *, root: str) -> SwinNames:
    """The names below ``root`` in the layout of "microsoft", "timm", "transformers" or "torchvision"."""
    match kind:
        case "transformers":
            return SwinNames(
                patches=f"{root}embeddings.patch_embeddings.projection.weight",
                blocks=root + "encoder.layers.{stage}.blocks",
                table="attention.self.relative_position_bias_table",
            )
        case "torchvision":
            # Stages alternate with what merges patches.
            return SwinNames(patches=f"{root}features.0.0.weight", blocks=root + "features.{odd}")
        case _:
            return SwinNames(
                patches=f"{root}patch_embed.proj.weight",
                blocks=root + "layers.{stage}.blocks",
                mask=f"{root}layers.0.blocks.1.attn_mask",
            )


def imagenet_frame(size: int, *, interpolation: Literal["bicubic", "bilinear"] = "bicubic") -> Frame:
    """The shorter side to 256 for squares of 224, and in proportion: how ImageNet's models are evaluated."""
    return Frame(mode="crop", scale=round(size * 256 / 224), interpolation=interpolation)


def settings(found: Checkpoint, where: SwinNames, *, head: HeadKind) -> ImageSettings:
    """timm's Swin of the sizes that the shapes tell; the ones that have a name get it.

    Raises `UserError` naming what is missing.
    """
    width = found.shape(where.patches)[0]
    depths = _depths(found, where)
    tables = [found.shape(f"{where.before(stage)}.0.{where.table}") for stage in range(len(depths))]
    heads = tuple(table[-1] for table in tables)
    window = (math.isqrt(tables[0][0]) + 1) // 2
    size = _side(found, where, window=window)
    frame = imagenet_frame(size)
    named = next((name for *sizes, name in _NAMED if tuple(sizes) == (width, depths, heads)), None)
    if named is not None and window == 7:
        return ImageSettings(name=named, size=size, frame=frame, head=head)
    options: dict[str, Option] = {"embed_dim": width, "depths": depths, "num_heads": heads, "window_size": window}
    return ImageSettings(name="swin_tiny_patch4_window7_224", size=size, options=options, frame=frame, head=head)


def rules(kind: str, *, root: str, stages: int) -> Rules:
    """From our names of a Swin backbone to those below ``root``; ``kind`` as in `names`."""
    match kind:
        case "timm":
            return (Rule(r"image\.backbone\.(.+)", rf"{root}\1"),)
        case "microsoft":
            # timm moved what merges patches from the end of a stage to the beginning of the next one.
            moved = (_moved(stage, rf"{root}layers.{stage - 1}.downsample.\1") for stage in range(1, stages))
            return (*moved, Rule(r"image\.backbone\.(.+)", rf"{root}\1"))
        case "transformers":
            return _transformers(root, stages)
        case "torchvision":
            return _torchvision(root, stages)
        case _:
            raise UserError(f"no layout of Swin transformers is called {kind!r}")


def unused(root: str) -> tuple[Unused, ...]:
    """What is no weight: buffers that follow from the sizes, and the classifier of the pretraining."""
    return (
        Unused(rf"{root}.*\.(relative_position_index|attn_mask)", "a buffer that follows from the sizes"),
        Unused(rf"{root}head\.(weight|bias|fc\.weight|fc\.bias)", "the classifier of the pretraining"),
    )


def stages_of(settings: ImageSettings) -> int:
    """How many stages a Swin has: four, unless the options say otherwise."""
    depths = settings.options.get("depths")
    return len(depths) if isinstance(depths, tuple) else 4


def _depths(found: Checkpoint, where: SwinNames) -> tuple[int, ...]:
    depths: list[int] = []
    while count := found.count(rf"{re.escape(where.before(len(depths)))}\.(\d+)\."):
        depths.append(count)
    if not depths:
        raise UserError(f"{found.place} does not fit the layout it looks like: {where.before(0)}.0 is missing")
    return tuple(depths)


def _side(found: Checkpoint, where: SwinNames, *, window: int) -> int:
    """Of the images: the mask of shifted windows has as many rows as the map has windows."""
    if not where.mask or where.mask not in found.state:
        return SIZE
    return math.isqrt(found.shape(where.mask)[0]) * window * PATCH


def _moved(stage: int, theirs: str) -> Rule:
    return Rule(rf"image\.backbone\.layers\.{stage}\.downsample\.(.+)", theirs)


def _transformers(root: str, stages: int) -> Rules:
    block = r"image\.backbone\.layers\.(\d+)\.blocks\.(\d+)"
    theirs = rf"{root}encoder.layers.\1.blocks.\2"
    return (
        Rule(r"image\.backbone\.patch_embed\.proj\.(weight|bias)", rf"{root}embeddings.patch_embeddings.projection.\1"),
        Rule(r"image\.backbone\.patch_embed\.norm\.(weight|bias)", rf"{root}embeddings.norm.\1"),
        Rule(r"image\.backbone\.norm\.(weight|bias)", rf"{root}layernorm.\1"),
        *(_moved(stage, rf"{root}encoder.layers.{stage - 1}.downsample.\1") for stage in range(1, stages)),
        Rule(rf"{block}\.norm1\.(weight|bias)", rf"{theirs}.layernorm_before.\3"),
        Rule(rf"{block}\.norm2\.(weight|bias)", rf"{theirs}.layernorm_after.\3"),
        Rule(rf"{block}\.attn\.qkv\.(weight|bias)", rf"{theirs}.attention.self.{{query,key,value}}.\3"),
        Rule(rf"{block}\.attn\.proj\.(weight|bias)", rf"{theirs}.attention.output.dense.\3"),
        Rule(rf"{block}\.attn\.(relative_position_bias_table)", rf"{theirs}.attention.self.\3"),
        Rule(rf"{block}\.mlp\.fc1\.(weight|bias)", rf"{theirs}.intermediate.dense.\3"),
        Rule(rf"{block}\.mlp\.fc2\.(weight|bias)", rf"{theirs}.output.dense.\3"),
    )


def _torchvision(root: str, stages: int) -> Rules:
    found = [
        Rule(r"image\.backbone\.patch_embed\.proj\.(weight|bias)", rf"{root}features.0.0.\1"),
        Rule(r"image\.backbone\.patch_embed\.norm\.(weight|bias)", rf"{root}features.0.2.\1"),
        Rule(r"image\.backbone\.norm\.(weight|bias)", rf"{root}norm.\1"),
    ]
    for stage in range(stages):
        block, theirs = _BLOCK.format(stage=stage), rf"{root}features.{2 * stage + 1}.\1"
        found += [
            Rule(rf"{block}\.mlp\.fc1\.(weight|bias)", rf"{theirs}.mlp.0.\2"),
            Rule(rf"{block}\.mlp\.fc2\.(weight|bias)", rf"{theirs}.mlp.3.\2"),
            Rule(rf"{block}\.(.+)", rf"{theirs}.\2"),
            _moved(stage, rf"{root}features.{2 * stage}.\1"),
        ]
    return tuple(found)
