"""The terms of an objective: modules that take the columns, own their scale or head, and return a loss.

Each has settings (frozen, plain data, saved with the model) and a module; a new kind of term is one of each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from unicl.config import python_file
from unicl.errors import UserError, suggest
from unicl.objective import blockwise, tiled
from unicl.objective.bag import Bag as Bag
from unicl.objective.bag import BagSettings as BagSettings
from unicl.objective.blockwise import Side
from unicl.objective.classify import Classify as Classify
from unicl.objective.classify import ClassifySettings as ClassifySettings
from unicl.objective.classify import ClassName as ClassName
from unicl.objective.distill import Distill as Distill
from unicl.objective.distill import DistillSettings as DistillSettings
from unicl.objective.masked import Masked as Masked
from unicl.objective.masked import MaskedSettings as MaskedSettings
from unicl.objective.peers import ALONE, Gather, Peers, Shared, apart, detached, nothing, share, sizes_of, total
from unicl.objective.plan import Tiling
from unicl.objective.predict import Caption as Caption
from unicl.objective.predict import CaptionSettings as CaptionSettings
from unicl.objective.targets import Incidence, Target, finding_target, same_key, yes_or_no
from unicl.objective.words import Words
from unicl.similarity.chosen import chosen
from unicl.similarity.find import Option, find_similarity
from unicl.similarity.scale import Scale, ScaleSettings
from unicl.space import Columns, Embedding, Keys, TextType

Compare = Callable[..., Tensor]
LOSSES: Final = ("softmax", "sigmoid")
"""The functions of `unicl.objective.losses` for images and texts, each with a blockwise and a tiled form."""
Texts = Literal["all", "captions", "classes", "findings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSettings:
    """One contrast of images with texts.

    * ``texts``: which text rows it compares; images that are known not to belong to it stay out. "findings" compares
      the images and the texts of which findings are known, and the target is how many of these they share.
    * ``findings``: how that is measured, by the "cosine" of their vectors (MedCLIP, section 3.3) or their "dot"
      product (its released code); ``sharpness`` multiplies it: 1 is the paper's, large is only the most alike.
    * ``dims``: how many leading dimensions it reads (None: all).
    * ``similarity``: see `unicl.similarity.find.find_similarity`; ``options`` are its further arguments, and
      ``use_options`` those that are others when the trained model is used (GLoRIA).
    * ``part_share``: the share of each row's parts that is compared: those that find the best counterpart among the
      rows of this process (FILIP, section 3.1, 25 %). Only in training; 1 is all of them.
    * ``loss``: the name of a function in `unicl.objective.losses`, or ``file.py:function`` with the same arguments.
    * ``class_share``: with both types of text in one softmax, the share of an image's mass that its class texts get.
    * ``count_classes``: whether a class text weighs as many rows as show it (UniCL), or one (typed rows).
    * ``gather``: with several processes, "exact" gives the numbers of one process with the whole batch. "detached" does
      not send gradients to the rows of others, which leaves towers a share of theirs (cn_clip's and open_clip's own
      default); "none" compares a process's rows with each other alone (BertCLIP, cn_clip's --skip-aggregate).
    """

    kind: Literal["contrast"] = "contrast"
    name: str = "instances"
    weight: float = 1.0
    texts: Texts = "all"
    findings: Literal["cosine", "dot"] = "cosine"
    sharpness: float = 1.0
    dims: int | None = None
    similarity: str = "cosine"
    options: Mapping[str, Option] = field(default_factory=dict)
    use_options: Mapping[str, Option] = field(default_factory=dict)
    part_share: float = 1.0
    loss: str = "softmax"
    image_weight: float = 0.5
    smoothing: float = 0.0
    class_share: float | None = None
    count_classes: bool = True
    gather: Gather = "exact"
    scale: ScaleSettings = ScaleSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsSettings:
    """SupCon: two augmented views of every image against each other, equal labels belonging together."""

    kind: Literal["views"] = "views"
    name: str = "views"
    weight: float = 1.0
    scale: ScaleSettings = ScaleSettings(init=10.0, learned=False)


TermSettings = (
    ContrastSettings
    | ViewsSettings
    | ClassifySettings
    | DistillSettings
    | BagSettings
    | CaptionSettings
    | MaskedSettings
)


class Contrast(nn.Module):
    """The contrast that `ContrastSettings` describes: similarity, target and loss over the columns."""

    def __init__(self, settings: ContrastSettings) -> None:
        super().__init__()
        _check_contrast(settings)
        self.settings = settings
        self.scale = Scale(settings.scale)

    def forward(self, shared: Shared, tiling: Tiling = Tiling()) -> Tensor:
        """A scalar; zero (with a graph) if no image and text of the batch belong to this term."""
        if self.settings.gather != "none":
            return self._of_views(shared, tiling)
        return total(self._of_views(apart(shared), tiling) / shared.peers.size, peers=shared.peers)

    def _of_views(self, shared: Shared, tiling: Tiling) -> Tensor:
        """The mean over the views of the texts, each with all images (MedCLIP's losses.py)."""
        second = shared.text_keys.having(TextType.VIEW)
        views = (~second, second) if second.any() else (~second,)
        return torch.stack([self._compared(shared, tiling, among=view) for view in views]).mean()

    def _compared(self, shared: Shared, tiling: Tiling, *, among: Tensor) -> Tensor:
        settings = self.settings
        if shared.columns.texts is None:
            raise UserError(f"the term {settings.name!r} compares texts, but the model has no text tower")
        image_rows, text_rows = self._taking(shared)
        text_rows = text_rows & among
        if not (image_rows.any() and text_rows.any()):
            return nothing(shared.columns)
        text_keys = shared.text_keys.select(text_rows)
        images, texts = self._sides(shared, image_rows, text_rows, keys=text_keys)
        return find_loss(settings.loss, similarity=settings.similarity, options=settings.options)(
            images,
            texts,
            target=self._target(shared.image_keys.select(image_rows), text_keys),
            scale=self.scale(),
            bias=self.scale.bias,
            image_weight=settings.image_weight,
            smoothing=settings.smoothing,
            peers=shared.peers,
            tiling=tiling,
        )

    def _target(self, image_keys: Keys, text_keys: Keys) -> Target:
        settings = self.settings
        if settings.texts == "findings":
            return finding_target(image_keys, text_keys, similarity=settings.findings, sharpness=settings.sharpness)
        keys = (each.besides(TextType.FINDING) for each in (self._weighted(image_keys), text_keys))
        return same_key(*keys)

    def _sides(self, shared: Shared, image_rows: Tensor, text_rows: Tensor, *, keys: Keys) -> tuple[Side, Side]:
        columns = shared.columns
        assert columns.texts is not None
        images = columns.images.select(image_rows[shared.own_images], dims=self.settings.dims)
        texts = columns.texts.select(text_rows[shared.own_texts], dims=self.settings.dims)
        images, texts = chosen(images, texts, share=self.settings.part_share if self.training else 1.0)
        if self.settings.gather == "detached":
            images, texts = (detached(column, peers=shared.peers) for column in (images, texts))
        counts = self._counts(keys, shared.text_counts[text_rows])
        ones = torch.ones_like(shared.text_counts[:1]).expand(int(image_rows.sum()))
        return (
            Side(embedding=images, counts=ones.to(images.whole), sizes=sizes_of(image_rows, sizes=shared.image_sizes)),
            Side(embedding=texts, counts=counts.to(texts.whole), sizes=sizes_of(text_rows, sizes=shared.text_sizes)),
        )

    def _taking(self, shared: Shared) -> tuple[Tensor, Tensor]:
        types = (TextType.CAPTION, TextType.CLASS, TextType.FINDING)
        image_caption, image_class, image_finding = (shared.image_keys.having(type) for type in types)
        text_caption, text_class, text_finding = (shared.text_keys.having(type) for type in types)
        match self.settings.texts:
            case "captions":  # an image without any key is a fair negative; one with only a label was not captioned
                return image_caption | ~(image_class | image_finding), text_caption
            case "classes":  # an image without a label may well show the class
                return image_class, text_class
            case "findings":
                return image_finding, text_finding
            case _:
                return torch.ones_like(image_class), torch.ones_like(text_class)

    def _weighted(self, keys: Keys) -> Keys:
        share = self.settings.class_share
        if share is None:
            return keys
        parts = torch.where(keys.types == int(TextType.CLASS), share, 1 - share)
        return replace(keys, weights=keys.weights * parts.to(keys.weights))

    def _counts(self, keys: Keys, counts: Tensor) -> Tensor:
        """Rows of one class text share one count if classes are not counted: two ranks then equal one."""
        if self.settings.count_classes or not len(keys.rows):
            return counts
        once = keys.types == int(TextType.CLASS)
        _, inverse, number = torch.unique(keys.keys[once], return_inverse=True, return_counts=True)
        return counts.index_put((keys.rows[once],), 1 / number[inverse].to(counts))


class Views(nn.Module):
    """The contrast of views that `ViewsSettings` describes (Khosla et al., section 3.2)."""

    def __init__(self, settings: ViewsSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = Scale(settings.scale)

    def forward(self, shared: Shared, tiling: Tiling = Tiling()) -> Tensor:
        """A scalar; needs a second view of the images."""
        columns = shared.columns
        # A process without images has no views of them either.
        views = columns.views if columns.image_keys.size else columns.images
        if views is None:
            raise UserError("the term 'views' needs two views of each image; set views=2 in the recipe")
        if not shared.image_keys.size:
            return nothing(columns)
        stacked_ND = torch.cat([columns.images.whole, views.whole])
        sizes = tuple(2 * size for size in shared.image_sizes)
        side = Side(
            embedding=Embedding(whole=stacked_ND, features=stacked_ND[:, :0]),
            counts=stacked_ND.new_ones(sum(sizes)),
            sizes=sizes,
        )
        return blockwise.views(
            side,
            target=_same_image_or_key(shared.image_keys.besides(TextType.FINDING), sizes=shared.image_sizes),
            scale=self.scale(),
            peers=shared.peers,
            tiling=tiling,
        )


Term = Contrast | Views | Classify | Distill | Bag | Caption | Masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a term is built for: the width of features and of embeddings, the classes, the tokens.

    ``image_parts`` and ``text_parts`` are the widths of parts, 0 where a tower gives none.
    """

    features: int
    width: int | None = None
    classes: Sequence[ClassName] = ()
    image_parts: int = 0
    text_parts: int = 0
    words: Words | None = None


class Objective(nn.Module):
    """The weighted sum of the terms of a recipe."""

    def __init__(
        self,
        settings: Sequence[TermSettings],
        *,
        features: int,
        width: int | None = None,
        classes: Sequence[ClassName] = (),
        image_parts: int = 0,
        text_parts: int = 0,
        words: Words | None = None,
    ) -> None:
        super().__init__()
        given = Given(
            features=features,
            width=width,
            classes=classes,
            image_parts=image_parts,
            text_parts=text_parts,
            words=words,
        )
        names = [s.name for s in settings]
        if len(set(names)) != len(names):
            raise UserError(f"two terms of a recipe have one name: {', '.join(names)}")
        self.settings = tuple(settings)
        self.terms = nn.ModuleDict({s.name: _build(s, given) for s in settings})

    def forward(
        self, columns: Columns, *, peers: Peers = ALONE, tiling: Tiling = Tiling()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go down, and each term's own value by name: of the rows of all processes, equal on all.

        ``columns`` are this process's rows. Their gradient, and that of the terms' own parameters, is that of the
        loss times the number of processes, so that the mean over the processes of a parameter's gradients is exact.
        """
        shared = share(columns, peers=peers)
        parts = {s.name: self.terms[s.name](shared, tiling) for s in self.settings}
        together = torch.stack([s.weight * parts[s.name] for s in self.settings]).sum()
        return together, {name: part.detach() for name, part in parts.items()}

    @property
    def reads_features(self) -> bool:
        """Whether a term reads the features before the head, which otherwise need not travel between ranks."""
        return any(
            isinstance(t, Bag) or (isinstance(t, Classify) and t.settings.reads == "features")
            for t in self.terms.values()
        )

    def clamp(self) -> None:
        """Bring every scale back below its limit; call after each step of the optimiser."""
        for scale in self.scales().values():
            scale.clamp()

    def scales(self) -> dict[str, Scale]:
        """The scale of each term that has one, by the term's name."""
        return {name: term.scale for name, term in self.terms.items() if isinstance(term, Contrast | Views)}


def find_loss(name: str, *, similarity: str = "cosine", options: Mapping[str, Option] | None = None) -> Compare:
    """A loss by its name in `unicl.objective.losses`, or by ``file.py:function``, of scores that a similarity makes.

    What the library knows runs blockwise; a loss from a file is given all scores of the batch at once.
    """
    path, colon, function = name.rpartition(":")
    if colon:
        own = getattr(python_file(Path(path)), function, None)
        if own is None:
            raise UserError(f"{path} has no function {function!r}, which was to be the loss")
        return partial(tiled.dense, loss=own, score=find_similarity(similarity, options=options))
    home = blockwise if similarity == "cosine" else tiled
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}{suggest(name, LOSSES)}; give {', '.join(LOSSES)} or file.py:function")
    loss: Compare = getattr(home, name)
    return loss if similarity == "cosine" else partial(loss, score=find_similarity(similarity, options=options))


def _check_contrast(settings: ContrastSettings) -> None:
    name, share = settings.name, settings.part_share
    if settings.texts == "findings" and settings.loss == "sigmoid":
        raise UserError(
            f"the term {name!r} asks of each pair yes or no (loss 'sigmoid'), but findings are shared more or less; "
            "take loss 'softmax'"
        )
    if not settings.sharpness > 0:
        raise UserError(f"the term {name!r} has sharpness {settings.sharpness:g}; give a number above 0")
    if not 0 < share <= 1:
        raise UserError(f"the term {name!r} has part_share {share:g}; give a share above 0, and 1 for all parts")
    if share < 1 and settings.similarity == "cosine":
        raise UserError(
            f"the term {name!r} compares whole vectors (similarity 'cosine') and has no parts to choose from; "
            "leave part_share at 1, or take similarity 'tokenwise'"
        )


def _same_image_or_key(keys: Keys, *, sizes: Sequence[int]) -> Target:
    """Both views of an image belong together, and images that share a class; views lie process by process."""
    known, groups = torch.unique(keys.keys, return_inverse=True)
    bare = torch.ones(keys.size, dtype=torch.bool, device=groups.device)
    bare[keys.rows] = False
    alone = bare.nonzero()[:, 0]
    rows, groups = torch.cat([keys.rows, alone]), torch.cat([groups, len(known) + torch.arange(len(alone)).to(alone)])
    starts = torch.tensor([0, *sizes]).cumsum(0)[:-1].to(rows)
    lengths = torch.tensor(list(sizes)).to(rows)
    process = torch.repeat_interleave(torch.arange(len(lengths)).to(rows), lengths)[rows]
    first = rows + starts[process]
    both = torch.cat([first, first + lengths[process]])
    weights = torch.ones(len(both), dtype=keys.weights.dtype, device=rows.device)
    side = Incidence(rows=both, groups=groups.repeat(2), weights=weights, size=2 * keys.size)
    return yes_or_no(Target(images=side, texts=side, groups=len(known) + len(alone)))


def _build(settings: TermSettings, given: Given) -> Term:
    match settings:
        case ContrastSettings():
            return Contrast(settings)
        case ViewsSettings():
            return Views(settings)
        case ClassifySettings():
            return Classify(settings, features=given.features, width=given.width, classes=given.classes)
        case DistillSettings():
            return Distill(settings)
        case MaskedSettings():
            return Masked(settings, places=given.image_parts, states=given.text_parts, words=given.words)
        case CaptionSettings():
            return Caption(settings, places=given.image_parts, words=given.words)
        case BagSettings():
            return Bag(settings, features=given.features, words=given.words)
