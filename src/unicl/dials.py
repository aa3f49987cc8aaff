"""The flags of `unicl train` that set a field of the recipe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Dials:
    """The fields of a recipe that have a flag of their own; any other is set with --set.

    Parameters
    ----------
    steps
        Length of the run in steps, or of each stage without a length of its own; wins over epochs.
    batch
        Batch size over all processes.
    towers
        The paper's towers and how they were trained, in place of a laptop's: filip b32 or l14; wukong b32, l14 or
        swin_l; gloria resnet50; lit b32, b16 or l16; align b7, l2 or coyo; chinese_clip rn50, b16, l14, l14_336 or
        h14; bert_clip b32; medclip swin or resnet50; convirt and virtex resnet50; icmlm and tag_prediction resnet50
        or vgg16.
    match
        wukong: what is compared, words with reduced patches, all tokens, or the global vectors; medclip: how findings
        are, by the cosine (the paper) or the dot product (its code).
    setting
        lit: a letter for images and one for texts: L locked, U trained before, u from random weights; Lu if not given.
    task
        virtex: bicaptioning, captioning, masked (hidden words), tokens (words in no order) or labels.
    model
        icmlm: a transformer over places and tokens (tfm), or attention to places that the caption steers (att_fc).
    tags
        icmlm, tag_prediction: which words of captions images are tagged with: nouns, adjectives (and nouns), verbs (and
        both) or clusters of captions.
    gather
        chinese_clip, bert_clip: what is taken from other processes: rows and gradients (exact), rows (detached), none.
    teacher
        chinese_clip: a model whose image vectors are learned from as well.
    class_share
        itl: the weight of class texts against captions, 0 to 1.
    class_dims
        itl: how many leading dimensions classes read; half of the width if not given.
    image
        Any timm model.
    image_weights
        random, hub, package:NAME, a file or a folder.
    lock_image
        Train only the image tower's head.
    image_lora, text_lora
        Train adapters of this rank (LoRA) in place of the tower: 8 or 16 are common.
    text
        clip, bert, or a transformers folder or hub name; for lit, bert, siglip, t5 or mt5.
    tokenizer
        train (on your texts), clip, chinese, or a folder.
    prompts
        Templates for class names: auto, en, zh, clip80, filip, wukong80, gloria, ... (docs/evaluation.md), or a file.
    eval_every
        Evaluate on --val every so many steps.
    metric
        The number that says which checkpoint is the best, such as zeroshot/top1.
    patience
        Stop after so many evaluations without a better one.
    track
        tensorboard or wandb.
    workers
        Threads that read images, on each process.
    chunk
        Rows that pass through the towers at once, by gradient caching, with the same gradient: a number, or auto for
        the most that the free memory holds. Example: --batch 4096 --chunk 64.
    parallel
        On several processes: a whole model on each (ddp), or a part of it (fsdp).
    exchange
        On several processes: each gathers the smaller column of all (gather), or blocks of it travel (ring).
    keep_mb
        Megabytes for scores that are kept instead of being computed again in the backward pass.
    cache
        A locked image tower that sees pictures without augmentation sees each once, and what it says is kept in this
        folder, for other runs too: auto (OUT/features, where that pays), off, or a folder.
    compile
        Put the towers through torch.compile; pays on GPUs in long runs.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int | None = None
    lr: float | None = None
    width: int | None = None
    towers: str | None = None
    match: Literal["reduced", "tokens", "global", "cosine", "dot"] | None = None
    setting: str | None = None
    task: str | None = None
    model: str | None = None
    tags: str | None = None
    gather: Literal["exact", "detached", "none"] | None = None
    teacher: str | None = None
    class_share: float | None = None
    class_dims: int | None = None
    image: str | None = None
    image_weights: str | None = None
    image_size: int | None = None
    lock_image: bool | None = None
    image_lora: int | None = None
    text_lora: int | None = None
    text: str | None = None
    text_weights: str | None = None
    tokenizer: str | None = None
    prompts: str | None = None
    precision: Literal["fp32", "bf16"] | None = None
    seed: int | None = None
    eval_every: int | None = None
    save_every: int | None = None
    metric: str | None = None
    patience: int | None = None
    track: tuple[Literal["tensorboard", "wandb"], ...] | None = None
    workers: int | None = None
    chunk: int | Literal["auto"] | None = None
    parallel: Literal["ddp", "fsdp"] | None = None
    exchange: Literal["gather", "ring"] | None = None
    keep_mb: int | None = None
    cache: str | None = None
    compile: bool | None = None


ARGUMENTS = (
    *("width", "batch", "text", "towers", "match", "setting", "task", "model", "tags"),
    *("gather", "teacher"),
    *("class_share", "class_dims"),
)
"""The flags that are arguments of a recipe; those of every recipe, `FIRST`, are fields where they are none."""
FIRST = ("width", "batch", "text")
_FIELDS = (
    *((name, f"fit.{name}") for name in ("steps", "epochs", "precision", "seed", "eval_every", "save_every")),
    *((name, f"fit.{name}") for name in ("metric", "patience", "track")),
    *((name, f"data.{name}") for name in ("batch", "prompts", "workers")),
    *((name, f"compute.{name}") for name in ("chunk", "parallel", "exchange", "keep_mb", "cache", "compile")),
    ("lr", "optim.lr"),
    ("image", "image.name"),
    ("image_weights", "image.weights"),
    ("image_size", "image.size"),
    ("lock_image", "image.locked"),
    ("image_lora", "image.lora"),
    ("text_lora", "text.lora"),
    ("text", "text.name"),
    ("text_weights", "text.weights"),
    ("tokenizer", "text.tokenizer"),
)
"""Which field of a recipe each flag sets."""


def assigned(name: str, dials: Dials, *, more: Sequence[str]) -> Any:
    """The recipe of a name with the dials that were given, then with ``field=value``; see `unicl.config`."""
    from dataclasses import replace
    from inspect import signature

    from unicl import lookup

    takes = signature(lookup.find(name)).parameters
    given = {dial: value for dial in ARGUMENTS if (value := getattr(dials, dial)) is not None}
    # These are fields of every recipe, and arguments of those whose other fields follow from them.
    width, *_ = (None if dial in takes else given.pop(dial, None) for dial in FIRST)
    recipe = lookup.recipe(name, arguments=given)
    recipe = recipe if width is None else replace(recipe, width=width)
    return turned(recipe, beside(name, dials), more=more)


def beside(name: str, dials: Dials) -> Dials:
    """The dials but for the text tower's, if that is an argument of the recipe."""
    from dataclasses import replace
    from inspect import signature

    from unicl import lookup

    return replace(dials, text=None) if "text" in signature(lookup.find(name)).parameters else dials


def turned(recipe: Any, dials: Dials, *, more: Sequence[str]) -> Any:
    """A recipe with the dials that were given but those that are its arguments, then with ``field=value``."""
    from unicl.config import assign

    fields = {field: value for dial, field in _FIELDS if (value := getattr(dials, dial)) is not None}
    if recipe.text is None and recipe.words is not None and "text.tokenizer" in fields:
        fields["words.tokenizer"] = fields.pop("text.tokenizer")
    if dials.image is not None and dials.image_weights is None:
        fields["image.weights"] = "random"
    if dials.text is not None and dials.text_weights is None and recipe.text is not None:
        fields["text.weights"] = "random"
    return assign(recipe, [*(f"{field}={json.dumps(value)}" for field, value in fields.items()), *more])


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ShardDials:
    """The flags of `unicl shard` that say what its tars are like.

    Parameters
    ----------
    resize
        Make images JPEGs whose shorter side has so many pixels, never larger than they were; else files are copied.
    quality
        Of those JPEGs, 1 to 100.
    per_shard
        Samples in a shard; 10000 if no --size-mb is given either.
    size_mb
        Size of a shard in megabytes.
    shuffle
        Seed of the order in which samples are written.
    keep_order
        Leave samples in the order of the data: a folder per class then gives shards of one class.
    """

    resize: int | None = None
    quality: int = 95
    per_shard: int | None = None
    size_mb: float | None = None
    shuffle: int = 0
    keep_order: Annotated[bool, Parameter(negative=())] = False

    def settings(self) -> Any:
        """The `unicl.data.shards.manifest.ShardSettings` of the flags."""
        from unicl.data.shards.manifest import ShardSettings

        return ShardSettings(
            resize=self.resize,
            quality=self.quality,
            per_shard=self.per_shard,
            size_mb=self.size_mb,
            shuffle=None if self.keep_order else self.shuffle,
        )
