"""Scores and a target to a number. One file, one function a loss; each takes the same arguments.

``scores`` is ``(I, T)``, already scaled. ``target`` is ``(I, T)``, not negative. ``counts (T,)`` says how many equal
rows a text stands for: the value is exactly that of the repeated rows. ``image_weight`` is the share of the
image-to-text direction. Derivation with counts: docs/objectives.md.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax(
    scores: Tensor,
    target: Tensor,
    *,
    counts: Tensor | None = None,
    image_weight: float = 0.5,
    smoothing: float = 0.0,
    reduction: str = "mean",
    text_scores: Tensor | None = None,
) -> Tensor:
    """Two-way cross-entropy with any number of positives, each row's target brought to sum one.

    CLIP with the diagonal; UniCL (algorithm 1) with equal labels; ConVIRT with ``image_weight=0.75``; ALIGN with
    ``smoothing``. Rows and columns without a positive are negatives for the others and add nothing themselves.
    ``reduction="mean"`` averages each direction over its rows that have a positive, ``"sum"`` adds them, so that
    UniCL's equation 1 is twice the sum at equal weights. ``text_scores (I, T)``, if given, are what the texts' softmax
    reads in place of ``scores`` (FILIP, equations 1, 2, 4 and 5).
    """
    text_scores = scores if text_scores is None else text_scores
    counts = scores.new_ones(scores.shape[1]) if counts is None else counts.to(scores)
    target = target.to(scores)
    row_mass, column_mass = target @ counts, target.sum(0)
    rows = image_weight * _share((row_mass > 0).to(scores), reduction)
    columns = (1 - image_weight) * _share(counts * (column_mass > 0), reduction)
    by_image = target * (rows / _nonzero(row_mass))[:, None] * counts
    by_text = target * (columns / _nonzero(column_mass))
    if smoothing:
        by_image = (1 - smoothing) * by_image + smoothing * rows[:, None] * counts / counts.sum()
        by_text = (1 - smoothing) * by_text + smoothing * columns / scores.shape[0]
    row_logsumexp = torch.logsumexp(scores + counts.log(), dim=1)
    column_logsumexp = torch.logsumexp(text_scores, dim=0)
    pulled = (by_image * scores).sum() + (by_text * text_scores).sum()
    return rows @ row_logsumexp + columns @ column_logsumexp - pulled


def sigmoid(
    scores: Tensor,
    target: Tensor,
    *,
    counts: Tensor | None = None,
    image_weight: float = 0.5,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Every pair its own yes or no (SigLIP, equation 1): summed over texts, averaged over images.

    Any positive target counts as a yes. Both directions are the same sum, so ``image_weight`` changes nothing;
    ``smoothing`` moves the yes to ``1 - smoothing / 2`` and the no to ``smoothing / 2``.
    """
    del image_weight
    counts = scores.new_ones(scores.shape[1]) if counts is None else counts.to(scores)
    yes = (target > 0).to(scores) * (1 - smoothing) + smoothing / 2
    # logsigmoid on both sides: softplus turns into the identity at 20 and loses digits.
    each = -yes * F.logsigmoid(scores) - (1 - yes) * F.logsigmoid(-scores)
    total = (each * counts).sum()
    return total / max(scores.shape[0], 1) if reduction == "mean" else total


def views(scores: Tensor, target: Tensor) -> Tensor:
    """SupCon's outer form (Khosla et al., equation 2) over all views of all images, each row against all others.

    ``scores (N, N)`` and ``target (N, N)`` are over the N stacked views; a row is never its own positive or
    negative. The released code multiplies by T / 0.07 besides. A row without a positive adds 0 to the mean.
    """
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    target = target.to(scores).masked_fill(itself, 0)
    mass = target.sum(1)
    row_logsumexp = torch.logsumexp(scores.masked_fill(itself, -torch.inf), dim=1)
    positive = (target * scores).sum(1) / _nonzero(mass)
    return ((row_logsumexp - positive) * (mass > 0)).mean()


def _share(weights: Tensor, reduction: str) -> Tensor:
    return weights / _nonzero(weights.sum()) if reduction == "mean" else weights


def _nonzero(mass: Tensor) -> Tensor:
    return torch.where(mass > 0, mass, torch.ones_like(mass))
