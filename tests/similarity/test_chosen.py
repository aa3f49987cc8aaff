import numpy as np
import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.errors import UserError
from unicl.similarity import chosen as module
from unicl.similarity.chosen import chosen
from unicl.space import Embedding, Parts


def column(rows, parts, *, seed):
    """Unit vectors of which some are padding, in any place; the last row has none that is real."""
    rng = np.random.default_rng(seed)
    values = F.normalize(torch.tensor(rng.normal(size=(rows, parts, 6))), dim=2)
    mask = torch.tensor(rng.random((rows, parts)) < 0.7)
    mask[-1] = False
    whole = values.new_zeros(rows, 6)
    return Embedding(whole=whole, features=whole[:, :0], parts=Parts(values=values.requires_grad_(), mask=mask))


def lists(embedding):
    return [
        [part.tolist() if real else None for part, real in zip(row, mask, strict=True)]
        for row, mask in zip(embedding.parts.values, embedding.parts.mask.tolist(), strict=True)
    ]


def test_all_parts_are_the_columns_themselves():
    images, texts = column(4, 5, seed=1), column(3, 4, seed=2)
    assert chosen(images, texts, share=1.0) == (images, texts)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 0.01])
@pytest.mark.parametrize("side", [3, 1024])
def test_each_row_keeps_its_best_parts_as_loops_find_them(share, side, monkeypatch):
    monkeypatch.setattr(module, "SIDE", side)
    images, texts = column(4, 9, seed=1), column(6, 5, seed=2)
    made = chosen(images, texts, share=share)
    for own, other, kept in ((images, texts, made[0]), (texts, images, made[1])):
        wanted = oracles.best_share(lists(own), lists(other), share)
        for row, places in enumerate(wanted):
            if not own.parts.mask[row].any():
                assert not kept.parts.mask[row].any()
                continue
            real = kept.parts.values[row][kept.parts.mask[row]]
            assert torch.equal(real, own.parts.values[row][places])


def test_the_number_kept_is_rounded_up_and_never_a_pad():
    for parts, share, wanted in ((4, 0.25, 1), (5, 0.25, 2), (100, 0.07, 7), (1, 0.25, 1), (49, 0.25, 13)):
        images, texts = column(2, parts, seed=1), column(2, 3, seed=2)
        images.parts.mask[0] = True
        kept, _ = chosen(images, texts, share=share)
        assert kept.parts.mask.sum(1).tolist() == [wanted, 0]
        assert kept.parts.values.shape[1] == wanted


def test_chosen_parts_learn_and_the_others_do_not():
    images, texts = column(4, 8, seed=1), column(3, 6, seed=2)
    kept, _ = chosen(images, texts, share=0.5)
    kept.parts.values[kept.parts.mask].sum().backward()
    learned = images.parts.values.grad.abs().sum(2) > 0
    assert learned.sum() == kept.parts.mask.sum()
    assert not (learned & ~images.parts.mask).any()


def test_only_the_rows_at_hand_are_looked_at():
    images, texts = column(5, 9, seed=1), column(6, 5, seed=2)
    together, _ = chosen(images, texts, share=0.25)
    alone, _ = chosen(images, texts.select(slice(0, 1)), share=0.25)
    assert torch.equal(together.parts.mask, alone.parts.mask)
    assert not torch.equal(together.parts.values, alone.parts.values)


def test_rows_without_anything_to_match_keep_their_first_parts():
    images, texts = column(3, 8, seed=1), column(2, 4, seed=2)
    kept, nothing = chosen(images, texts.select(slice(0, 0)), share=0.25)
    first = images.parts.values[0][images.parts.mask[0]][: int(kept.parts.mask[0].sum())]
    assert torch.equal(kept.parts.values[0][kept.parts.mask[0]], first)
    assert len(nothing.parts.mask) == 0


def test_columns_without_parts_have_nothing_to_choose_from():
    bare = Embedding(whole=torch.ones(2, 6), features=torch.ones(2, 0))
    with pytest.raises(UserError, match="'part_share' compares parts"):
        chosen(bare, bare, share=0.5)
