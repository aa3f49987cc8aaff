"""What similarities of parts ask of an embedding."""

from unicl.errors import UserError
from unicl.space import Embedding, Parts


def parts_of(embedding: Embedding, column: str, *, of: str) -> Parts:
    """The parts of a column; raises `UserError` if its tower gives none."""
    if embedding.parts is None:
        tower = column.removesuffix("s")
        raise UserError(
            f"the similarity {of!r} compares parts, but the {tower} tower gives none; set {tower}.parts in the recipe, "
            f"for example --set {tower}.parts={{}}"
        )
    return embedding.parts
