"""Every known layout, and which of them a checkpoint is in."""

from collections.abc import Sequence
from typing import Final

from unicl.errors import UserError
from unicl.towers.weights import (
    bert_clip,
    cn_clip,
    gloria,
    image_only,
    lit,
    medclip,
    microsoft_unicl,
    open_clip,
    openai,
    text_only,
    transformers_align,
    transformers_chinese_clip,
    transformers_clip,
    transformers_dual,
    transformers_siglip,
    virtex,
    wukong,
)
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.published import Layout, Published

PAIRS: Final[tuple[Layout, ...]] = (
    transformers_clip,
    transformers_siglip,
    transformers_chinese_clip,
    transformers_align,
    transformers_dual,
    bert_clip,
    lit,
    medclip,
    gloria,
    microsoft_unicl,
    virtex,
    wukong,
    cn_clip,
    openai,
    open_clip,
)
"""Layouts of images with texts, from the most to the least specific."""

SINGLES: Final[tuple[Layout, ...]] = (text_only, image_only)
"""Layouts of one tower alone, without a head."""

LAYOUTS: Final[tuple[Layout, ...]] = (*PAIRS, *SINGLES)


def read(found: Checkpoint) -> Published:
    """The model of a checkpoint; raises `UserError` if its layout is not known, or an entry is not accounted for."""
    layout = find(found)
    if layout is None:
        some = ", ".join(list(found.state)[:4])
        known = ", ".join(each.NAME for each in LAYOUTS)
        raise UserError(
            f"{found.place} is in no layout that is known ({some}, ...); known are {known}; weights of one timm "
            "model are also taken with --image NAME --image-weights FILE"
        )
    return layout.read(found)


def find(found: Checkpoint, *, among: Sequence[Layout] = LAYOUTS) -> Layout | None:
    """The layout of a checkpoint; None if it is in none of these."""
    return next((layout for layout in among if layout.recognises(found)), None)
