"""Towers with the weights that their settings name."""

from unicl.data.text import Tokenizer
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.load import load_image_weights, load_text_weights


def build_image_tower(settings: ImageSettings, *, width: int) -> ImageTower:
    """An image tower with the weights that the settings name.

    Raises `UserError` if the model or the weights do not exist, or do not fit each other.
    """
    tower = ImageTower(settings, width=width)
    if settings.weights != "random":
        load_image_weights(tower, source=settings.weights, name=settings.name)
    return tower


def build_text_tower(settings: TextSettings, *, width: int, tokenizer: Tokenizer) -> TextTower:
    """A text tower with the weights that the settings name.

    Raises `UserError` if the model or the weights do not exist, or do not fit each other or the tokenizer.
    """
    tower = TextTower(
        settings,
        width=width,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        pieces=None if settings.parts is None else tokenizer.pieces,
    )
    if settings.weights != "random":
        load_text_weights(tower, source=settings.weights, name=settings.name)
    return tower
