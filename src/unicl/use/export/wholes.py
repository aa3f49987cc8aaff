"""What of a model graphs can hold: its whole vectors, and the terms that compare them."""

from dataclasses import replace
from typing import Final

from unicl.errors import UserError
from unicl.model import ModelSettings
from unicl.objective.terms import BagSettings, CaptionSettings, ContrastSettings, MaskedSettings, TermSettings

LEFT_OUT: Final = (
    "parts of pictures and texts are left out: the graphs give whole vectors, and scores are cosines of these alone"
)

WORDED: Final = (BagSettings, CaptionSettings, MaskedSettings)
"""Terms that predict words, which no graph does."""


def has_parts(settings: ModelSettings) -> bool:
    """Whether a tower of the model gives more than whole vectors."""
    return any(tower is not None and tower.parts is not None for tower in (settings.image, settings.text))


def check_wholes(settings: ModelSettings, *, joint: bool) -> None:
    """Raise `UserError` if the model has no whole vectors of its own, or its scores are of more than these."""
    contrasts = [term for term in settings.terms if isinstance(term, ContrastSettings)]
    means = [side for side, tower in (("image", settings.image), ("text", settings.text)) if _is_mean(tower)]
    if means:
        raise UserError(
            f"a graph gives whole vectors, and those of this model's {' and '.join(means)} tower are only means of "
            "their parts, which it was not trained to compare; write --to safetensors, or export a model of whole "
            "vectors"
        )
    if contrasts and all(term.similarity != "cosine" for term in contrasts):
        raise UserError(
            "a graph gives whole vectors, but this model was trained to compare parts alone; write --to safetensors, "
            "or export a model of whole vectors"
        )
    if joint and has_parts(settings):
        raise UserError(
            "a joint graph scores whole vectors, but this model's scores are of parts too; export without --joint"
        )


def of_wholes(settings: ModelSettings) -> ModelSettings:
    """The settings without parts, and without the terms that compare these or predict words."""
    terms = tuple(t for t in settings.terms if _reads_wholes(t) or not (has_parts(settings) or isinstance(t, WORDED)))
    if not has_parts(settings) and terms == settings.terms:
        return settings
    text = None if settings.text is None else replace(settings.text, parts=None)
    return replace(settings, image=replace(settings.image, parts=None), text=text, terms=terms)


def _reads_wholes(term: TermSettings) -> bool:
    return term.similarity == "cosine" if isinstance(term, ContrastSettings) else not isinstance(term, WORDED)


def _is_mean(tower: object) -> bool:
    return getattr(tower, "pool", None) == "parts"
