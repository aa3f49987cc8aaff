"""Numbers during training: the metrics of `unicl.evaluate.run` without intervals, from embeddings at hand."""

from torch import Tensor

from unicl.evaluate.exact import require_finite
from unicl.evaluate.retrieval import (
    CUTS,
    Pairs,
    Ranks,
    mean_recall,
    mean_reciprocal_rank,
    median_rank,
    rank_both_ways,
    recall,
)
from unicl.evaluate.zeroshot import Outcomes, Truth, class_accuracies, classify

DIRECTIONS = ("image_to_text", "text_to_image")


def metrics_from_embeddings(
    *,
    class_view: tuple[Tensor, Tensor, Truth] | None = None,
    instance_view: tuple[Tensor, Tensor, Pairs] | None = None,
) -> dict[str, float]:
    """All numbers that the embeddings allow, by the names of the full report, such as "zeroshot/top1".

    * ``class_view``: images ``(N, D')``, class vectors ``(C, D')`` and the classes of each image.
    * ``instance_view``: images ``(I, D)``, distinct texts ``(T, D)`` and who belongs to whom.

    Vectors are of unit length, on any one device. Knows no ranks: shard the samples, gather, then call it anywhere.
    Raises `UserError` if vectors are not finite.
    """
    found: dict[str, float] = {}
    if class_view is not None:
        images, vectors, truth = class_view
        found |= class_numbers(images, vectors, truth=truth)
    if instance_view is not None:
        images, texts, pairs = instance_view
        found |= retrieval_numbers(images, texts, pairs=pairs)
    return found


def class_numbers(images_ND: Tensor, classes_CD: Tensor, *, truth: Truth) -> dict[str, float]:
    """Top-1, top-5 and mean accuracy per class of zero-shot classification."""
    require_finite(images_ND, what="image embeddings")
    require_finite(classes_CD, what="class vectors")
    return outcome_numbers(classify(images_ND, classes_CD, truth=truth), truth=truth, classes=len(classes_CD))


def outcome_numbers(outcomes: Outcomes, *, truth: Truth, classes: int) -> dict[str, float]:
    """The numbers of `class_numbers` from what became of each image."""
    of_classes = class_accuracies(outcomes.hits(1), truth, classes=classes)
    return {
        "zeroshot/top1": float(outcomes.hits(1).mean()),
        "zeroshot/top5": float(outcomes.hits(5).mean()),
        "zeroshot/mean_per_class": float(of_classes.nanmean()),
    }


def retrieval_numbers(images_ID: Tensor, texts_TD: Tensor, *, pairs: Pairs) -> dict[str, float]:
    """Recall at 1, 5 and 10, mean reciprocal and median rank both ways, and the mean recall."""
    require_finite(images_ID, what="image embeddings")
    require_finite(texts_TD, what="text embeddings")
    return rank_numbers(rank_both_ways(images_ID, texts_TD, pairs=pairs))


def rank_numbers(ranks: Ranks) -> dict[str, float]:
    """The numbers of `retrieval_numbers` from the ranks of all queries."""
    found = {"retrieval/mean_recall": mean_recall(ranks)}
    for direction, one in zip(DIRECTIONS, (ranks.image_to_text, ranks.text_to_image), strict=True):
        found |= {f"retrieval/{direction}/r{k}": recall(one, k) for k in CUTS}
        found[f"retrieval/{direction}/mrr"] = mean_reciprocal_rank(one)
        found[f"retrieval/{direction}/median_rank"] = median_rank(one)
    return found
