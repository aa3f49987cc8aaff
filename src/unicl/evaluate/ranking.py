"""The rank of the best right answer where queries may stand among the answers themselves, and are left out then."""

from collections.abc import Callable

import torch
from scipy.sparse import csr_array
from torch import Tensor

from unicl.evaluate.exact import cosines, grid, tiles

CELLS = 2**22
"""Scores of one tile: 32 MB."""

Right = Callable[[slice], Tensor]
"""Some queries to ``(R, N)`` bool, which of the answers are right for them."""


def sharing(rows_E: Tensor, groups_E: Tensor, *, size: int) -> Right:
    """Items are right for each other where they share a group; each entry puts an item into one."""
    groups = int(groups_E.max()) + 1 if len(groups_E) else 1
    ones = torch.ones(len(rows_E), dtype=torch.int32).numpy()
    table = csr_array((ones, (rows_E.numpy(), groups_E.numpy())), shape=(size, groups))
    return lambda rows: torch.from_numpy((table[rows] @ table.T).toarray() > 0)


def paired(queries_E: Tensor, answers_E: Tensor, *, queries: int, answers: int) -> Right:
    """What is right is listed, a query and an answer an entry."""
    ones = torch.ones(len(queries_E), dtype=torch.int32).numpy()
    table = csr_array((ones, (queries_E.numpy(), answers_E.numpy())), shape=(queries, answers))
    return lambda rows: torch.from_numpy(table[rows].toarray() > 0)


def rank_among(
    queries_QD: Tensor, answers_ND: Tensor, *, right: Right, left_out_Q: Tensor, cells: int = CELLS
) -> Tensor:
    """``(Q,)`` int64 ranks from 1, 0 for a query without a right answer; memory for one tile of ``cells`` scores.

    ``left_out_Q`` is the one answer that is not in the gallery of each query: itself (CxC: a text finds itself first
    otherwise, and recall@1 is 0). Pessimistic at ties and exact, as `unicl.evaluate.retrieval.rank_both_ways`.
    """
    answers = grid(answers_ND)
    found = [torch.zeros(0, dtype=torch.int64)]
    for rows in tiles(len(queries_QD), tile=max(1, cells // max(len(answers_ND), 1))):
        scores_RN = cosines(grid(queries_QD[rows]), answers)
        right_RN = right(rows)
        own = left_out_Q[rows, None]
        right_RN.scatter_(1, own, False)
        best_R = scores_RN.masked_fill(~right_RN, -torch.inf).amax(1)
        wrong_RN = (~right_RN).scatter_(1, own, False)
        ahead_R = ((scores_RN >= best_R[:, None]) & wrong_RN).sum(1)
        found.append(torch.where(best_R.isneginf(), 0, 1 + ahead_R))
    return torch.cat(found)
