"""The composed task: a picture plus or minus a text finds a third thing (ALIGN, section 7)."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.evaluate.exact import cosines, grid, require_finite
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.naming import numbered
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.queries import Composed
from unicl.evaluate.ranking import paired, rank_among
from unicl.evaluate.report import Answer, Fact, Mistake, Result
from unicl.evaluate.scoring import direction_scores

SHOWN: Final = 3
LEAST: Final = 1e-3
"""The length below which a sum of two unit vectors has no direction left."""


def compose(images_QD: Tensor, texts_QD: Tensor, *, signs_Q: Tensor) -> Tensor:
    """``(Q, D)`` unit vectors of image plus or minus text, both of unit length (ALIGN, section 7: one to one).

    Raises `UserError` if a text takes all of its image away.
    """
    total = images_QD + signs_Q[:, None] * texts_QD
    if bool((total.norm(dim=1) < LEAST).any()):
        raise UserError("a query's text takes all of its image away; nothing is left to look for")
    return F.normalize(total, dim=1)


def cannot_compose(plan: Plan) -> str | None:
    """Composed queries need their table and a text tower."""
    if plan.options.composed is None:
        return "no queries of an image and a text were given (--queries)"
    if not plan.model.settings.reads_texts:
        return f"the model was trained with {plan.model.settings.recipe!r} and has no text tower"
    return None


def run_composed(job: Job) -> Result:
    """Recall of the composed queries and, to compare with, of their images alone and their texts alone."""
    pictures, bootstrap = job.pictures, job.options.bootstrap
    place = {sample.id: row for row, sample in enumerate(pictures.samples)}
    asked = _readable(job.options.composed, place)
    own = torch.tensor([place[one] for one in asked.images])
    entries = [(query, place[one]) for query, several in enumerate(asked.targets) for one in several]
    queries_E, targets_E = torch.tensor(entries).T
    right = paired(queries_E, targets_E, queries=len(own), answers=len(place))
    distinct, rows = numbered(asked.texts)
    texts = require_finite(job.model.embed_text(distinct, view="instances"), what="text embeddings")[rows]
    signs = torch.tensor(asked.signs)
    images = pictures.instances[own]
    queries = compose(images, texts, signs_Q=signs)
    ways = {"composed": queries, "image alone": images, "text alone": signs[:, None] * texts}
    ranks = {
        name: rank_among(vectors, pictures.instances, right=right, left_out_Q=own) for name, vectors in ways.items()
    }
    scores = [
        score
        for name, found in ranks.items()
        for score in direction_scores(
            found, key=f"composed/{name.replace(' ', '_')}", title=name, owner=own, bootstrap=bootstrap
        )
    ]
    return Result(
        task="composed",
        title="Image plus or minus text",
        scores=tuple(scores),
        ranks={name: tuple(ranks[name].tolist()) for name in ("composed", "image alone")},
        mistakes={"composed": _mistakes(asked, queries, ranks["composed"], pictures, most=job.options.mistakes)},
        facts=_facts(asked, given=job.options.composed, images=len(place)),
    )


def _readable(composed: Composed | None, place: dict[str, int]) -> Composed:
    """The queries whose images and targets could be read."""
    assert composed is not None
    kept = [
        (image, text, sign, targets)
        for image, text, sign, several in zip(
            composed.images, composed.texts, composed.signs, composed.targets, strict=True
        )
        if image in place and (targets := tuple(one for one in several if one in place))
    ]
    if not kept:
        raise UserError(f"{composed.name}: no query has an image and a target that can be read")
    return Composed(
        name=composed.name,
        images=tuple(image for image, _, _, _ in kept),
        texts=tuple(text for _, text, _, _ in kept),
        signs=tuple(sign for _, _, sign, _ in kept),
        targets=tuple(targets for _, _, _, targets in kept),
    )


def _mistakes(asked: Composed, queries: Tensor, ranks: Tensor, pictures: Pictures, *, most: int) -> tuple[Mistake, ...]:
    place = {sample.id: row for row, sample in enumerate(pictures.samples)}
    order = ranks.sort(descending=True, stable=True).indices[:most]
    mistakes = []
    for row in order[ranks[order] > 1].tolist():
        scores = cosines(grid(queries[row : row + 1]), grid(pictures.instances))[0]
        scores[place[asked.images[row]]] = -torch.inf
        right = {place[one] for one in asked.targets[row]}
        best = max(sorted(right), key=lambda one: float(scores[one]))
        answers = [
            Answer(
                text=pictures.samples[i].id, image=pictures.samples[i].image, score=float(scores[i]), right=i in right
            )
            for i in (best, *scores.topk(min(SHOWN, len(scores) - 1)).indices.tolist())
        ]
        mistakes.append(
            Mistake(
                id=asked.images[row],
                text=f"{'+' if asked.signs[row] > 0 else '−'} {asked.texts[row]}",
                image=pictures.samples[place[asked.images[row]]].image,
                rank=int(ranks[row]),
                wanted=answers[0],
                found=tuple(answers[1:]),
            )
        )
    return tuple(mistakes)


def _facts(asked: Composed, *, given: Composed | None, images: int) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "queries": len(asked.images),
        "of them with minus": sum(sign < 0 for sign in asked.signs),
        "images searched": f"{images - 1:,} (all but the query's own)",
        "the query": "unit vector of the image plus or minus that of the text",
        "recall@k": "share of the queries with a target among the first k images",
        "ties": "count against the model (the lowest place)",
    }
    if given is not None and len(given.images) > len(asked.images):
        facts["queries left out whose images cannot be read"] = len(given.images) - len(asked.images)
    return facts
