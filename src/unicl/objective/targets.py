"""Keys to targets: which scores should be high, and how much of a row's mass each gets.

A target ``T (I, T)`` is never made whole where the batch is large. It is kept as its factors, ``T = E K Fᵀ``: images
carry groups (E), texts carry groups (F), and K says which groups belong together (None: equal ones). From the factors
come the sums over positives that the blockwise losses need, one tile, or, for small batches and tests, all of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from unicl.space import Keys, TextType

By = Literal["images", "texts", "both"]
"""Whose softmax a target is read in: each has rows of its own to bring to sum one."""
BLOCK = 1 << 22
"""Elements of a kernel that are computed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incidence:
    """Which of ``size`` rows carry which groups, and how much: ``rows``, ``groups``, ``weights`` are ``(E,)``."""

    rows: Tensor
    groups: Tensor
    weights: Tensor
    size: int

    def part(self, place: slice) -> Self:
        """The entries of some rows that follow each other, numbered from 0."""
        inside = (self.rows >= place.start) & (self.rows < place.stop)
        rows, groups, weights = (t[inside] for t in (self.rows, self.groups, self.weights))
        return replace(self, rows=rows - place.start, groups=groups, weights=weights, size=place.stop - place.start)

    def add_to_groups(self, groups: Tensor, values: Tensor, *, scale: Tensor) -> None:
        """Add to ``groups (G, D)`` the values ``(size, D)`` of their rows, times ``scale (size,)`` and weight."""
        weights = self.weights.to(values) * scale[self.rows].to(values)
        groups.addmm_(_sparse(self.groups, self.rows, weights, size=(len(groups), self.size)), values)

    def add_to_rows(self, rows: Tensor, values: Tensor, *, scale: Tensor) -> None:
        """Add to ``rows (size, D)`` the values ``(G, D)`` of their groups, times ``scale (size,)`` and weight."""
        weights = self.weights.to(values) * scale[self.rows].to(values)
        rows.addmm_(_sparse(self.rows, self.groups, weights, size=(self.size, len(values))), values)

    @property
    def single(self) -> bool:
        """Whether no row carries two groups."""
        return len(self.rows) == 0 or int(torch.bincount(self.rows).max()) <= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How much each group of images and each group of texts belong together, from ``(A, k)`` and ``(B, k)`` vectors.

    ``function`` makes a block ``(a, B)`` of it from ``(a, k)`` and ``(B, k)``. If ``image_most (A,)`` and
    ``text_most (B,)`` are given, that is a block of scores, these are the highest of each group, and K is their
    exponential. A constant is taken off first, so that nothing overflows, which no softmax sees: the most of each
    group ``by`` whose softmax K is read, or, for one K that serves both, the most of all.
    """

    images: Tensor
    texts: Tensor
    function: Callable[[Tensor, Tensor], Tensor]
    image_most: Tensor | None = None
    text_most: Tensor | None = None

    def turned(self) -> Self:
        """The same with images and texts exchanged."""
        return replace(self, images=self.texts, texts=self.images, image_most=self.text_most, text_most=self.image_most)

    def near(self, known: Tensor) -> Self:
        """Some groups of images with all of texts."""
        most = None if self.image_most is None else self.image_most[known]
        return replace(self, images=self.images[known], image_most=most)

    def apply(self, values: Tensor, *, by: By) -> Tensor:
        """``K @ values``: ``(B, D)`` to ``(A, D)``, a block of rows at a time."""
        blocks = [self._block(place, by=by).to(values) @ values for place in self.places()]
        return torch.cat([values.new_zeros(0, values.shape[1]), *blocks])

    def places(self) -> Iterator[slice]:
        """Groups of images of which a block is computed at once."""
        step = max(BLOCK // max(len(self.texts), 1), 1)
        return (slice(start, start + step) for start in range(0, len(self.images), step))

    def _block(self, place: slice, *, by: By) -> Tensor:
        block = self.function(self.images[place], self.texts)
        if self.image_most is None or self.text_most is None or not block.numel():
            return block
        most = {"images": self.image_most[place, None], "texts": self.text_most, "both": self.text_most.max()}
        return block.sub_(most[by]).exp_()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """``T = E K Fᵀ`` by its factors: the groups of images and of texts, and their kernel (None: equal groups)."""

    images: Incidence
    texts: Incidence
    groups: int
    kernel: Kernel | None = None

    def turned(self) -> Self:
        """The transposed target."""
        kernel = None if self.kernel is None else self.kernel.turned()
        return replace(self, images=self.texts, texts=self.images, kernel=kernel)

    def met(self, values: Tensor, *, by: By = "both") -> Tensor:
        """``K @ values``: values of the texts' groups ``(B, D)`` to those of the images' ``(A, D)``; see `Kernel`."""
        return values if self.kernel is None else self.kernel.apply(values, by=by)

    def from_texts(self, values: Tensor, *, by: By = "both") -> Tensor:
        """``T @ values``: ``(texts,)`` or ``(texts, D)`` to ``(images,)`` or ``(images, D)``, by sums over groups."""
        flat = values[:, None] if values.ndim == 1 else values
        sums = flat.new_zeros(self.groups if self.kernel is None else len(self.kernel.texts), flat.shape[1])
        self.texts.add_to_groups(sums, flat, scale=flat.new_ones(len(flat)))
        result = flat.new_zeros(self.images.size, flat.shape[1])
        self.images.add_to_rows(result, self.met(sums, by=by), scale=flat.new_ones(len(result)))
        return result[:, 0] if values.ndim == 1 else result

    def part(self, images: slice, texts: slice) -> Self:
        """The target of some images and some texts."""
        return replace(self, images=self.images.part(images), texts=self.texts.part(texts))

    def dense(self, *, by: By = "both") -> Tensor:
        """All of it, ``(images, texts)``."""
        dtype = torch.promote_types(self.images.weights.dtype, self.texts.weights.dtype)
        return self.from_texts(torch.eye(self.texts.size, device=self.texts.rows.device, dtype=dtype), by=by)

    def near(self, images: slice) -> Self:
        """The target of some images, with only the groups that they carry, numbered anew."""
        own = self.images.part(images)
        known, inverse = torch.unique(own.groups, return_inverse=True)
        own = replace(own, groups=inverse)
        if self.kernel is not None:
            return replace(self, images=own, kernel=self.kernel.near(known))
        number = torch.full((max(self.groups, 1),), -1, device=known.device)
        number[known] = torch.arange(len(known), device=known.device)
        groups = number[self.texts.groups]
        kept = groups >= 0
        rows, weights = self.texts.rows[kept], self.texts.weights[kept]
        texts = replace(self.texts, rows=rows, groups=groups[kept], weights=weights)
        return replace(self, images=own, texts=texts, groups=len(known))


def paired(rows: int, *, device: torch.device | None = None) -> Target:
    """The diagonal: image i belongs to text i and to no other (CLIP, figure 3)."""
    numbers = torch.arange(rows, device=device)
    own = Incidence(rows=numbers, groups=numbers, weights=torch.ones(rows, device=device), size=rows)
    return Target(images=own, texts=own, groups=rows)


def same_key(image_keys: Keys, text_keys: Keys) -> Target:
    """``T[i, j] = sum over a of e[i, a] f[j, a]``: the keys that image i and text j share, weighted.

    One key a row of weight 1 gives UniCL's TargetM (algorithm 1); unique keys give `paired`; keys of mixed
    labels give `affinity`. Weights are those of `Keys`.
    """
    known, inverse = torch.unique(torch.cat([image_keys.keys, text_keys.keys]), return_inverse=True)
    groups = inverse.split([len(image_keys.keys), len(text_keys.keys)])
    images, texts = (
        Incidence(rows=keys.rows, groups=each, weights=keys.weights, size=keys.size)
        for keys, each in zip((image_keys, text_keys), groups, strict=True)
    )
    return Target(images=images, texts=texts, groups=len(known))


def affinity(image_mix_IC: Tensor, text_mix_TC: Tensor) -> Target:
    """``A = M Mᵀ`` for labels mixed by MixUp or CutMix (UniCL's authors, microsoft/UniCL issue 12).

    Each argument holds the share of every class in a row; for one-hot rows this is `same_key`.
    """
    images, texts = (_incidence(mix) for mix in (image_mix_IC, text_mix_TC))
    return Target(images=images, texts=texts, groups=image_mix_IC.shape[1])


def shared_findings(
    image_findings_IC: Tensor,
    text_findings_TC: Tensor,
    *,
    similarity: Literal["cosine", "dot"] = "cosine",
    sharpness: float = 1.0,
) -> Target:
    """MedCLIP's semantic target (section 3.3): the more findings an image and a text share, the more they belong.

    A row of the softmax target is softmax over its scores ``sim(l_i, l_j)``, which is ``T = exp(sim)`` brought to
    sum one. The paper takes the cosine; its code (medclip/losses.py) the dot product of {-1, 0, 1} vectors. Equal
    vectors are one group, so that cost and memory follow the number of distinct ones. ``sharpness`` multiplies the
    scores: in the limit, only equal vectors belong together (CLIP, where all are different).
    """
    (images, image_vectors), (texts, text_vectors) = (_grouped(each) for each in (image_findings_IC, text_findings_TC))
    if similarity == "cosine":
        image_vectors, text_vectors = (torch.nn.functional.normalize(v, dim=1) for v in (image_vectors, text_vectors))
    kernel = _exponential(
        Kernel(images=image_vectors, texts=text_vectors, function=partial(_products, sharpness=sharpness))
    )
    return Target(images=images, texts=texts, groups=len(image_vectors), kernel=kernel)


def finding_target(
    image_keys: Keys,
    text_keys: Keys,
    *,
    similarity: Literal["cosine", "dot"] = "cosine",
    sharpness: float = 1.0,
) -> Target:
    """`shared_findings` of the findings that rows carry, whose weights say what each counts."""
    both = [keys.only(TextType.FINDING) for keys in (image_keys, text_keys)]
    known, inverse = torch.unique(torch.cat([keys.keys for keys in both]), return_inverse=True)
    vectors = []
    for keys, columns in zip(both, inverse.split([len(keys.keys) for keys in both]), strict=True):
        vectors.append(keys.weights.new_zeros(keys.size, len(known)).index_put_((keys.rows, columns), keys.weights))
    return shared_findings(*vectors, similarity=similarity, sharpness=sharpness)


def yes_or_no(target: Target) -> Target:
    """1 where a target of shared keys is positive, 0 elsewhere."""
    if target.kernel is not None or target.images.single or target.texts.single:
        images, texts = (
            replace(each, weights=(each.weights > 0).to(each.weights)) for each in (target.images, target.texts)
        )
        return replace(target, images=images, texts=texts)
    # Rows with several keys may share more than one: count each pair of sets once.
    (images, image_sets), (texts, text_sets) = (
        _sets(each, groups=target.groups) for each in (target.images, target.texts)
    )
    kernel = Kernel(images=image_sets, texts=text_sets, function=_overlap)
    return Target(images=images, texts=texts, groups=len(image_sets), kernel=kernel)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, *, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, size, check_invariants=False)


def _incidence(mix: Tensor) -> Incidence:
    rows, groups = mix.nonzero(as_tuple=True)
    return Incidence(rows=rows, groups=groups, weights=mix[rows, groups], size=len(mix))


def _grouped(vectors: Tensor) -> tuple[Incidence, Tensor]:
    known, inverse = torch.unique(vectors, dim=0, return_inverse=True)
    rows = torch.arange(len(vectors), device=vectors.device)
    weights = torch.ones_like(rows, dtype=known.dtype if known.is_floating_point() else torch.float32)
    return Incidence(rows=rows, groups=inverse, weights=weights, size=len(vectors)), known.to(weights.dtype)


def _sets(incidence: Incidence, *, groups: int) -> tuple[Incidence, Tensor]:
    """Rows by the set of groups that they carry: equal sets are one group, with its ``(groups,)`` members."""
    numbers = torch.randint(2**62, (groups,), generator=torch.Generator().manual_seed(groups)).to(incidence.rows.device)
    held = incidence.weights > 0
    rows, each = incidence.rows[held], incidence.groups[held]
    marks = torch.zeros(incidence.size, dtype=torch.int64, device=rows.device).index_add_(0, rows, numbers[each])
    known, inverse = torch.unique(marks, return_inverse=True)
    members = incidence.weights.new_zeros(len(known), groups)
    members[inverse[rows], each] = 1
    every = torch.arange(incidence.size, device=rows.device)
    weights = incidence.weights.new_ones(incidence.size)
    return Incidence(rows=every, groups=inverse, weights=weights, size=incidence.size), members


def _exponential(scores: Kernel) -> Kernel:
    """The exponential of a kernel of scores, with the highest score of every group of either side."""
    images, texts = (each.images.new_full((len(each.images),), -torch.inf) for each in (scores, scores.turned()))
    for place in scores.places():
        block = scores.function(scores.images[place], scores.texts)
        if block.numel():
            images[place] = block.amax(1)
            texts = torch.maximum(texts, block.amax(0))
    return replace(scores, image_most=images, text_most=texts)


def _products(images: Tensor, texts: Tensor, *, sharpness: float) -> Tensor:
    return sharpness * (images @ texts.T)


def _overlap(images: Tensor, texts: Tensor) -> Tensor:
    return (images @ texts.T > 0).to(images)
