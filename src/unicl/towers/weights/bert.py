"""A BERT of transformers inside a checkpoint that has no configuration: sizes from shapes, rules of names."""

import re
from dataclasses import replace
from typing import Final, Literal

from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.towers.heads import HeadKind
from unicl.towers.text import TextSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused
from unicl.towers.weights.transformers_texts import tokenizer_of

HEAD_WIDTH: Final = 64
EPS: Final = 1e-12


def settings(
    found: Checkpoint, *, root: str, head: HeadKind, pool: Literal["cls", "mean", "padded"], context: int
) -> TextSettings:
    """The text tower that the shapes below ``root`` tell, its heads 64 wide as in every published BERT.

    Raises `UserError` naming what is missing.
    """
    name = f"{root}embeddings.position_embeddings.weight"
    places, width = found.shape(name)
    if width % HEAD_WIDTH:
        raise UserError(f"{found.place} does not fit: {name} is {(places, width)}; BERT's heads are {HEAD_WIDTH} wide")
    inner = found.shape(f"{root}encoder.layer.0.intermediate.dense.bias")[0]
    return TextSettings(
        name="bert",
        tokenizer="",
        layers=found.count(rf"{re.escape(root)}encoder\.layer\.(\d+)\."),
        dim=width,
        heads=width // HEAD_WIDTH,
        context=min(context, places),
        vocab=rows(found, root=root),
        eps=EPS,
        pool=pool,
        head=head,
        options={
            "max_position_embeddings": places,
            "type_vocab_size": found.shape(f"{root}embeddings.token_type_embeddings.weight")[0],
            "intermediate_size": inner,
        },
    )


def rows(found: Checkpoint, *, root: str) -> int:
    """How many entries the vocabulary has."""
    return found.shape(f"{root}embeddings.word_embeddings.weight")[0]


def tokenizer(found: Checkpoint, *, root: str, context: int) -> tuple[str, Tokenizer]:
    """The name and the tokenizer whose files lie beside the weights; raises `UserError` that says what to put there."""
    beside = replace(found, folder=found.folder or found.place.parent)
    return tokenizer_of(beside, vocab_size=rows(found, root=root), context=context)


def rules(root: str) -> Rules:
    """From our names of a "bert" backbone to those below ``root``."""
    return (Rule(r"text\.backbone\.(.+)", rf"{root}\1"),)


def unused(root: str) -> tuple[Unused, ...]:
    """The pooler and old counters."""
    place = re.escape(root)
    return (
        Unused(rf"{place}pooler\.dense\.(weight|bias)", "BERT's pooler, which this text tower does not read"),
        Unused(rf"{place}embeddings\.(position_ids|token_type_ids)", "numbers in a row"),
    )
