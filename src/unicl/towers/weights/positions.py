"""Learned positions of a published model for images of another size, or texts of another length."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, Final

import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor
from torch.nn.functional import interpolate

from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import OWN_NAMES, TextSettings, TextTower
from unicl.towers.weights.published import Published

_RELATIVE: Final = "relative_position_bias_table"
_PLACES: Final = "max_position_embeddings"
_TEXT_TABLES: Final = ("position_embedding.weight", "position_embeddings.weight")


def resized(
    model: Published,
    *,
    size: int | None,
    context: int | None,
    align_corners: bool = False,
    antialias: bool | None = None,
) -> Published:
    """The model for square images of ``size`` pixels a side and texts of ``context`` tokens; None leaves either.

    Tables of image positions are resampled as pictures, bicubic, the rows of class tokens kept. With ``align_corners``
    False and ``antialias`` (the default there) that is what open_clip and timm do, without ``antialias`` what
    transformers does, and with ``align_corners`` True (without ``antialias``) what cn_clip does. Relative positions
    are resampled by timm. A shorter text keeps its first positions, so that all texts that fit give the same numbers;
    for a longer one all positions are drawn out linearly, as open_clip does: between two rows of a one-dimensional
    table that is the plain choice. A table that is long enough, as BERT's is, stays as it is.

    Raises `UserError` if the model has no such tower, or cannot be built so.
    """
    smooth = not align_corners if antialias is None else antialias
    if size is not None and (model.image is None or size != model.image.size):
        model = _other_size(model, size, align_corners=align_corners, antialias=smooth)
    if context is not None and (model.text is None or context != model.text.context):
        model = _other_context(model, context)
    return model


def resample_grid(
    table_PF: Tensor, *, old: tuple[int, int], new: tuple[int, int], align_corners: bool = False, antialias: bool = True
) -> Tensor:
    """``(P', F)`` from ``(P, F)``: positions of a grid of ``old`` rows and columns for one of ``new``; bicubic.

    What the table has before the grid, such as a class token's position, is kept.
    """
    extra = len(table_PF) - prod(old)
    first, grid = table_PF[:extra], table_PF[extra:]
    picture = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    drawn = interpolate(picture, size=new, mode="bicubic", align_corners=align_corners, antialias=antialias)
    return torch.cat([first, drawn.permute(0, 2, 3, 1).reshape(prod(new), -1)])


def resample_line(table_LF: Tensor, *, length: int, reserved: int = 0) -> Tensor:
    """``(L', F)`` from ``(L, F)``: the first rows of a longer table, or a shorter one drawn out linearly.

    The first ``reserved`` rows are no positions (RoBERTa) and are kept.
    """
    first, line = table_LF[:reserved], table_LF[reserved:]
    if length <= len(line):
        return table_LF[: reserved + length]
    drawn = interpolate(line.T[None], size=length, mode="linear", align_corners=False)
    return torch.cat([first, drawn[0].T])


def _other_size(model: Published, size: int, *, align_corners: bool, antialias: bool) -> Published:
    if model.image is None:
        raise UserError(f"{_named(model)} has no image tower for images of {size} pixels; leave size out")
    frame, before = model.image.frame, model.image.size
    if frame.scale is not None:
        # The same share of the picture is cut out of its middle.
        frame = replace(frame, scale=round(frame.scale * size / before))
    settings = replace(model.image, size=size, frame=frame)
    old, new = (_image_tower(each, width=model.width) for each in (model.image, settings))
    _check_patches(new.backbone, size)
    state, notes = dict(model.state), list(model.notes)
    for key, like in new.state_dict().items():
        name, value = f"image.{key}", state.get(f"image.{key}")
        if value is None or value.shape == like.shape:
            continue
        if key.endswith(_RELATIVE):
            window = new.get_submodule(key.rpartition(".")[0]).window_size
            state[name] = resize_rel_pos_bias_table(value, new_window_size=window, new_bias_shape=like.shape)
            notes.append(f"{name}: resampled for windows of {window[0]} x {window[1]} places, by timm")
            continue
        sides = tuple(_grid(tower, key, source=_named(model)) for tower in (old, new))
        rows = value.reshape(-1, value.shape[-1])
        drawn = resample_grid(rows, old=sides[0], new=sides[1], align_corners=align_corners, antialias=antialias)
        state[name] = drawn.reshape(like.shape)
        notes.append(_told(name, sides, align_corners=align_corners, antialias=antialias))
    return replace(model, image=settings, state=state, notes=tuple(notes))


def _image_tower(settings: ImageSettings, *, width: int) -> Any:
    with torch.device("meta"):
        return ImageTower(settings, width=width)


def _check_patches(backbone: Any, size: int) -> None:
    patches = getattr(backbone, "patch_embed", None)
    side = max(getattr(patches, "patch_size", (1,)))
    if size % side and getattr(patches, "strict_img_size", False):
        near = max(round(size / side), 1) * side
        raise UserError(
            f"images of {size} pixels cannot be cut into patches of {side}; give a multiple, such as {near}"
        )


def _grid(tower: Any, key: str, *, source: str) -> tuple[int, int]:
    """Rows and columns of the places that a table counts."""
    owner = tower.get_submodule(key.rpartition(".")[0])
    side = getattr(owner, "feat_size", None) or getattr(getattr(owner, "patch_embed", None), "grid_size", None)
    if side is None or not key.endswith("pos_embed"):
        raise UserError(
            f"{source}: image.{key} depends on the size of images in a way that is not known; leave size out"
        )
    return int(side[0]), int(side[1])


def _told(name: str, sides: tuple[tuple[int, int], ...], *, align_corners: bool, antialias: bool) -> str:
    old, new = (f"{rows} x {columns}" for rows, columns in sides)
    corners = f"align_corners {align_corners}{', antialiased' if antialias else ''}"
    return f"{name}: resampled from {old} to {new} places (bicubic, {corners})"


def _other_context(model: Published, context: int) -> Published:
    if model.text is None:
        raise UserError(f"{_named(model)} has no text tower for texts of {context} tokens; leave context out")
    tower = _text_tower(model, model.text)
    name = next((f"text.{key}" for key in tower.state_dict() if key.endswith(_TEXT_TABLES)), None)
    table = None if name is None else model.state.get(name)
    state, settings = dict(model.state), replace(model.text, context=context)
    notes = model.notes
    if name is not None and table is not None:
        # RoBERTa counts positions from its padding id on.
        config = tower.backbone.config
        reserved = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        settings = _with_room(settings, places=len(table) - reserved, reserved=reserved)
        length = len(_text_tower(model, settings).state_dict()[name.removeprefix("text.")])
        state[name] = resample_line(table, length=length - reserved, reserved=reserved)
        notes += _text_notes(name, len(table), length, fixed=settings.fixed)
    return replace(model, text=settings, state=state, tokenizer=_cut_at(model.tokenizer, context), notes=notes)


def _with_room(settings: TextSettings, *, places: int, reserved: int) -> TextSettings:
    """Settings whose table is long enough, where its length is not that of the context anyway."""
    follows = settings.name in OWN_NAMES and _PLACES not in settings.options
    if follows or settings.context <= places:
        return settings
    options: Mapping[str, Any] = {**settings.options, _PLACES: settings.context + reserved}
    return replace(settings, options=options)


def _text_tower(model: Published, settings: TextSettings) -> Any:
    with torch.device("meta"):
        return TextTower(
            settings, width=model.width, vocab_size=model.vocab_size, eos_id=model.eos_id, pad_id=model.pad_id
        )


def _text_notes(name: str, old: int, new: int, *, fixed: bool) -> tuple[str, ...]:
    if new == old:
        return ()
    how = f"{name}: cut from {old} to {new} positions" if new < old else f"{name}: {old} positions drawn out to {new}"
    # Padding counts as text there, and there is more or less of it now.
    return (f"{how}{'; the numbers of all texts change, since they are padded to that length' if fixed else ''}",)


def _cut_at(tokenizer: Tokenizer | None, context: int) -> Tokenizer | None:
    if tokenizer is None:
        return None
    return Tokenizer(
        tokenizer.inner,
        name=tokenizer.name,
        context=context,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        cleaning=tokenizer.cleaning,
        fixed=tokenizer.fixed,
    )


def _named(model: Published) -> str:
    return model.source or model.origin
