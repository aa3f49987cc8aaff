"""The space of image, text and key that everything else works in.

Shape letters used in every name that ends in capitals:

====== ==============================================================
letter meaning
====== ==============================================================
I      images of a batch
T      texts of a batch; need not equal I
U      distinct texts of a batch, each encoded once
E      entries of a sparse incidence of rows and keys
D      embedding width
F      feature width of a tower, before its head
G      embedding width of a teacher
P      parts of an image (patches, places of a map), or of either side
Q      parts of a text (tokens, words), beside those of an image
L      tokens of a text, padding included
C      classes
V      augmented views of one image
N      rows of either kind
====== ==============================================================
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

NO_KEY = 0
"""The key of nothing: no class, text or sample ever has it (`unicl.data.keys` never returns it)."""
NOTHING = -1
"""At a place of a caption: no token is hidden there."""


class TextType(IntEnum):
    """What a text says: what is in one image, the name of a class, or a finding, which images have as well.

    A row with an entry of the type VIEW is of the second view of a batch's texts: those before it in other words.
    """

    CAPTION = 0
    CLASS = 1
    FINDING = 2
    VIEW = 3


class Finding(IntEnum):
    """What is known of a finding (a sign of a disease, an attribute): the cells of CheXpert's tables, -2 for blank."""

    PRESENT = 1
    ABSENT = 0
    UNCERTAIN = -1
    UNMENTIONED = -2


Findings = tuple[tuple[str, Finding], ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """``size`` bytes at ``offset`` of a file: one member of an uncompressed archive, read in place."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RemoteTar:
    """A tar of ``size`` bytes elsewhere: its address or command, and where its copy stands while there is one."""

    address: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Streamed:
    """``size`` bytes at ``offset`` of a tar that is fetched when it is needed, and removed to make room."""

    tar: RemoteTar
    offset: int
    size: int


ImageSource = Path | bytes | Slice | Streamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One thing of a data set: an image, captions and labels, any of them possibly missing.

    ``id`` names the sample in messages and is unique within its source and stable between runs.
    ``labels`` are names as the data gives them ("0" is a class like any other); ``namespace`` says
    whose names they are, so that equal names of two sources stay two classes. ``findings`` are all those of its table,
    with what is known of each; their names mean the same everywhere. None at all: nothing is known of any.
    ``others`` are more images of the same study or thing, of which one is shown each time. ``patient`` is whom the
    sample is of, or what else no split of the data may part; "" is nobody known.
    """

    id: str
    image: ImageSource | None = None
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    namespace: str = ""
    findings: Findings = ()
    others: tuple[ImageSource, ...] = ()
    patient: str = ""

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """All its images."""
        return () if self.image is None else (self.image, *self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Which rows carry which keys: a sparse incidence of ``size`` rows with E entries.

    ``rows``, ``keys``, ``types`` are ``(E,)`` int64 (``types`` holds `TextType`), ``weights`` is ``(E,)`` float32.
    A row without an entry shows nothing that is known. The weight of a finding says what is known of it, and may be 0
    or negative: findings are compared by `unicl.objective.targets.shared_findings` and never as equal keys.
    """

    rows: Tensor
    keys: Tensor
    types: Tensor
    weights: Tensor
    size: int

    @classmethod
    def single(cls, keys: Tensor, *, type: TextType = TextType.CAPTION) -> Self:
        """One key a row, `NO_KEY` meaning none; ``keys`` is ``(N,)``."""
        rows = (keys != NO_KEY).nonzero()[:, 0]
        types = torch.full_like(rows, int(type))
        weights = torch.ones(len(rows), device=keys.device)
        return cls(rows=rows, keys=keys[rows], types=types, weights=weights, size=len(keys))

    @classmethod
    def empty(cls, size: int) -> Self:
        """``size`` rows that carry nothing."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(rows=none, keys=none, types=none, weights=torch.zeros(0), size=size)

    def to(self, device: torch.device) -> Self:
        """The same incidence on another device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def having(self, type: TextType) -> Tensor:
        """``(size,)`` bool: the rows that carry a key of this type."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.rows.device)
        mask[self.rows[self.types == int(type)]] = True
        return mask

    def only(self, type: TextType) -> Self:
        """The entries of one type, for all rows."""
        return self._take(self.types == int(type), size=self.size)

    def besides(self, type: TextType) -> Self:
        """The entries of all other types, for all rows."""
        return self._take(self.types != int(type), size=self.size)

    def select(self, mask: Tensor) -> Self:
        """The rows where ``mask (size,)`` holds, numbered anew."""
        number = mask.cumsum(0) - 1
        kept = self._take(mask[self.rows], size=int(mask.sum()))
        return replace(kept, rows=number[kept.rows])

    def _take(self, entries: Tensor, *, size: int) -> Self:
        return replace(self._map(lambda t: t[entries]), size=size)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            rows=change(self.rows),
            keys=change(self.keys),
            types=change(self.types),
            weights=change(self.weights),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """The captions that images of a batch show, for terms that predict them: M captions of up to L tokens.

    ``images (M,)`` and ``texts (M,)`` are the rows of each caption's image and of its text (of T); ``tokens (M, L)``
    and ``mask (M, L)`` its tokens, padded; ``wanted (M, L)`` the token that is hidden at a place, `NOTHING` elsewhere.
    """

    images: Tensor
    texts: Tensor
    tokens: Tensor
    mask: Tensor
    wanted: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            texts=self.texts.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            wanted=self.wanted.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's data: an image column of I rows and a text column of T rows.

    * ``images``: ``(I, 3, H, W)`` uint8 pixels, or ``(I, F)`` float features of a locked tower; I may be 0.
    * ``views``: a second augmented view of the same images, if the recipe asks for it.
    * ``tokens``, ``token_mask``: ``(U, L)`` the distinct texts, padded to the longest of the batch.
    * ``text_index``: ``(T,)`` the row of ``tokens`` that each text row shows; T may be 0.
    * ``text_counts``: ``(T,)`` float32, how many equal rows a text row stands for.
    * ``image_keys`` (I rows) and ``text_keys`` (T rows): what each row shows.
    * ``captions``: which text is an image's caption, if the recipe predicts texts from images.
    * ``ids``: the samples the batch was made of, for messages.
    """

    images: Tensor
    image_keys: Keys
    tokens: Tensor
    token_mask: Tensor
    text_index: Tensor
    text_keys: Keys
    text_counts: Tensor
    views: Tensor | None = None
    captions: Captions | None = None
    ids: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            image_keys=self.image_keys.to(device),
            tokens=self.tokens.to(device, non_blocking=True),
            token_mask=self.token_mask.to(device, non_blocking=True),
            text_index=self.text_index.to(device, non_blocking=True),
            text_keys=self.text_keys.to(device),
            text_counts=self.text_counts.to(device, non_blocking=True),
            views=None if self.views is None else self.views.to(device, non_blocking=True),
            captions=None if self.captions is None else self.captions.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Embeddings of the parts of each row: ``values (N, P, D)``, ``mask (N, P)`` bool, true where a part is real."""

    values: Tensor
    mask: Tensor

    def select(self, rows: Tensor | slice) -> Self:
        """Some rows, by mask, number or place."""
        return replace(self, values=self.values[rows], mask=self.mask[rows])

    def padded(self, size: int) -> Self:
        """The same with room for ``size`` parts a row, if there are fewer."""
        missing = max(size - self.mask.shape[1], 0)
        if not missing:
            return self
        pad = torch.nn.functional.pad
        return replace(self, values=pad(self.values, (0, 0, 0, missing)), mask=pad(self.mask, (0, missing)))


def joined(several: Sequence[Parts]) -> Parts:
    """The rows of several columns one after another, padded to the most parts that a row of any has."""
    longest = max(each.mask.shape[1] for each in several)
    padded = [each.padded(longest) for each in several]
    return Parts(values=torch.cat([p.values for p in padded]), mask=torch.cat([p.mask for p in padded]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What a tower makes of a column: ``whole (N, D)`` of unit length, and its parts if the recipe asks.

    ``features (N, F)`` are the tower's before the head: what a linear probe reads.
    """

    whole: Tensor
    features: Tensor
    parts: Parts | None = None

    def select(self, rows: Tensor | slice, *, dims: int | None = None) -> Self:
        """Some rows, by mask, number or place, with the first ``dims`` of their whole vectors at unit length."""
        parts = None if self.parts is None else self.parts.select(rows)
        return replace(self, whole=prefix(self.whole[rows], dims), features=self.features[rows], parts=parts)


def all_rows(several: Sequence[Embedding], *, width: int, features: int, parts: bool) -> Embedding:
    """The rows of several columns one after another; of none, no rows of these sizes."""
    if not several:
        none = Parts(values=torch.zeros(0, 1, width), mask=torch.ones(0, 1, dtype=torch.bool)) if parts else None
        return Embedding(whole=torch.zeros(0, width), features=torch.zeros(0, features), parts=none)
    kept = [each.parts for each in several if each.parts is not None]
    return Embedding(
        whole=torch.cat([each.whole for each in several]),
        features=torch.cat([each.features for each in several]),
        parts=joined(kept) if kept else None,
    )


def prefix(whole_ND: Tensor, dims: int | None) -> Tensor:
    """The first ``dims`` of each vector at unit length; None is the whole vector as it is."""
    if dims is None or dims == whole_ND.shape[-1]:
        return whole_ND
    return torch.nn.functional.normalize(whole_ND[..., :dims], dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the towers make of a batch, and all that an objective sees.

    ``images`` has I rows and ``texts`` T rows (each distinct text already repeated where it is needed);
    ``views`` is the second view of the same images, ``taught (I, G)`` what a teacher says of them, if there is one;
    ``captions`` says which text is an image's own, for terms that predict it.
    """

    images: Embedding
    image_keys: Keys
    texts: Embedding | None
    text_keys: Keys
    text_counts: Tensor
    views: Embedding | None = None
    taught: Tensor | None = None
    captions: Captions | None = None
