"""How much memory training would take, by arithmetic: before the first step, an order of magnitude is enough."""

from dataclasses import dataclass

from unicl.data.check.report import Memory

STATE_BYTES = 18  # a parameter: weight, gradient and two Adam moments in float32, and its copy in bfloat16
SCORE_BYTES = 12  # a pair of a batch: its score and a softmax in each direction, in float32
IMAGE_BYTES = 37  # per token, layer and unit of width; see `memory`
TEXT_BYTES = 49


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A transformer's size; ``patch`` is an image tower's patch side, ``vocabulary`` a text tower's."""

    layers: int
    width: int
    patch: int = 0
    vocabulary: int = 0

    def parameters(self, tokens: int) -> int:
        """Blocks of 12 width² weights, 13 width gains and biases; the way in, one position a token, the last norm."""
        way_in = (3 * self.patch**2 + 2) * self.width if self.patch else self.vocabulary * self.width
        blocks = self.layers * (12 * self.width**2 + 13 * self.width)
        return way_in + blocks + (tokens + 2) * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """A pair of towers under the name users know."""

    name: str
    image: Shape
    text: Shape
    size: int = 224


_CLIP_TEXT = Shape(layers=12, width=512, vocabulary=49_408)
TOWERS = (
    Towers(
        name="ViT-Ti/16 and a small text tower",
        image=Shape(layers=12, width=192, patch=16),
        text=Shape(layers=4, width=256, vocabulary=8192),
    ),
    Towers(name="ViT-B/32, CLIP's sizes", image=Shape(layers=12, width=768, patch=32), text=_CLIP_TEXT),
    Towers(name="ViT-B/16, CLIP's sizes", image=Shape(layers=12, width=768, patch=16), text=_CLIP_TEXT),
    Towers(
        name="ViT-L/14, CLIP's sizes",
        image=Shape(layers=24, width=1024, patch=14),
        text=Shape(layers=12, width=768, vocabulary=49_408),
    ),
)


def memory(towers: Towers, *, batch_size: int, text_tokens: int, context: int) -> Memory:
    """Bytes to train ``towers`` with AdamW in bf16, without gradient checkpointing.

    A block keeps about 34 bytes per token and unit of width for its backward pass when attention is fused (Korthikanti
    et al. 2022, equation 2, without the attention maps); counted on timm's ViT it is 37, on transformers' CLIP text
    tower 49. ``text_tokens`` is the longest text of the data, since texts are padded to the longest of a batch.
    """
    image_tokens = (towers.size // towers.image.patch) ** 2 + 1
    parameters = towers.image.parameters(image_tokens) + towers.text.parameters(context)
    per_image = IMAGE_BYTES * image_tokens * towers.image.layers * towers.image.width
    per_text = TEXT_BYTES * text_tokens * towers.text.layers * towers.text.width
    return Memory(
        model=towers.name,
        batch_size=batch_size,
        parameters=parameters,
        states=STATE_BYTES * parameters,
        activations=batch_size * (per_image + per_text),
        scores=SCORE_BYTES * batch_size**2,
    )
