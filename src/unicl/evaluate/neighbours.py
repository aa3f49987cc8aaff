"""k-nearest-neighbours classification: what do the training images nearest to an image show?"""

import torch
from torch import Tensor

from unicl.evaluate.exact import grid, tiles
from unicl.evaluate.zeroshot import Truth

BITS = 20
BANK = 2**12


def nearest(images_ND: Tensor, bank_MD: Tensor, *, k: int, tile: int = 512, bank_tile: int = BANK) -> Tensor:
    """``(N, k)`` int64: the rows of the bank with the highest cosine, best first, equal ones in the bank's order.

    Unit vectors; a running top-k over tiles, never N x M. Raises ValueError for a bank tile over 4096 rows.
    """
    if not 0 < bank_tile <= BANK:
        raise ValueError(f"a bank tile has 1 to {BANK} rows, not {bank_tile}")
    k = min(k, len(bank_MD))
    found = [torch.zeros(0, k, dtype=torch.int64, device=images_ND.device)]
    for rows in tiles(len(images_ND), tile=tile):
        found.append(_nearest_of_tile(grid(images_ND[rows], bits=BITS), bank_MD, k=k, bank_tile=bank_tile))
    return torch.cat(found)


def vote(neighbours_Nk: Tensor, bank: Truth, *, classes: int, tile: int = 512) -> Tensor:
    """``(N,)`` int64: the class that most neighbours show; a tie goes to the class of the nearest one.

    A neighbour with several classes votes for each of them.
    """
    shown_MV = _padded(bank, empty=classes)
    found = [torch.zeros(0, dtype=torch.int64, device=neighbours_Nk.device)]
    for rows in tiles(len(neighbours_Nk), tile=tile):
        found.append(_elect(shown_MV[neighbours_Nk[rows]], classes=classes))
    return torch.cat(found)


def _nearest_of_tile(images_ND: Tensor, bank_MD: Tensor, *, k: int, bank_tile: int) -> Tensor:
    size = (len(images_ND), 0)
    scores = torch.zeros(size, dtype=torch.float64, device=images_ND.device)
    index = torch.zeros(size, dtype=torch.int64, device=images_ND.device)
    for columns in tiles(len(bank_MD), tile=bank_tile):
        # Scores are whole numbers of 41 bits at most, so 12 bits of float64 are free for the column: no two are equal.
        tile_scores = images_ND @ grid(bank_MD[columns], bits=BITS).T
        places = torch.arange(tile_scores.shape[1], device=images_ND.device)
        ordered = (tile_scores * BANK + (BANK - 1 - places)).topk(min(k, len(places)), dim=1).values
        scores = torch.cat([scores, (ordered / BANK).floor()], 1)
        index = torch.cat([index, columns.start + BANK - 1 - ordered.remainder(BANK).long()], 1)
        kept = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        scores, index = scores.gather(1, kept), index.gather(1, kept)
    return index


def _padded(truth: Truth, *, empty: int) -> Tensor:
    counts = torch.bincount(truth.rows, minlength=truth.size)
    place = torch.arange(len(truth.rows), device=counts.device) - (counts.cumsum(0) - counts)[truth.rows]
    width = max(1, int(counts.max())) if truth.size else 1
    padded = torch.full((truth.size, width), empty, dtype=torch.int64, device=counts.device)
    padded[truth.rows, place] = truth.classes
    return padded


def _elect(shown_NkV: Tensor, *, classes: int) -> Tensor:
    rows, k, width = shown_NkV.shape
    shown = shown_NkV.reshape(rows, -1)
    votes = torch.zeros(rows, classes + 1, dtype=torch.int64, device=shown.device)
    votes.scatter_add_(1, shown, torch.ones_like(shown))
    first = torch.full_like(votes, k)
    place = torch.arange(k, device=shown.device).repeat_interleave(width).expand(rows, -1)
    first.scatter_reduce_(1, shown, place, "amin")
    return (votes * (k + 1) + (k - first))[:, :classes].argmax(1)
