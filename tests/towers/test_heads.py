"""Heads and token pools, against plain loops."""

import pytest
import torch
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.towers.heads import Pool, embed, make_head, pool_tokens

EOS = 9
TOKENS = torch.tensor([[1, 5, EOS, 0], [1, 5, 6, EOS], [1, EOS, EOS, 0], [1, 5, 6, 0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)


def _states() -> Tensor:
    return torch.randn(4, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _loop(states: Tensor, pool: str) -> Tensor:
    rows = []
    for row, tokens, mask in zip(states, TOKENS, MASK, strict=True):
        real = [state for state, here in zip(row, mask, strict=True) if here]
        ends = [place for place, token in enumerate(tokens.tolist()) if token == EOS]
        match pool:
            case "eos":
                rows.append(row[ends[0]] if ends else real[-1])
            case "cls":
                rows.append(row[0])
            case "last":
                rows.append(real[-1])
            case "mean":
                rows.append(torch.stack(real).mean(0))
            case "max":
                rows.append(torch.stack([max(column) for column in torch.stack(real).T]))
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["eos", "cls", "last", "mean", "max"])
def test_pools_read_real_tokens_only(pool: Pool) -> None:
    states = _states()
    found = pool_tokens(states, pool=pool, tokens=TOKENS, mask=MASK, eos_id=EOS)
    torch.testing.assert_close(found, _loop(states, pool))
    states[~MASK] = 1e9
    assert torch.equal(pool_tokens(states, pool=pool, tokens=TOKENS, mask=MASK, eos_id=EOS), found)


def test_a_larger_vocabulary_does_not_move_the_end() -> None:
    states = _states()
    added = TOKENS.where(TOKENS != 5, EOS + 100)
    found = pool_tokens(states, pool="eos", tokens=added, mask=MASK, eos_id=EOS)
    torch.testing.assert_close(found, _loop(states, "eos"))


def test_padding_with_the_end_mark_does_not_move_the_end() -> None:
    states, none = _states(), torch.zeros(4, 4, dtype=torch.bool)
    padded = TOKENS.masked_fill(~MASK, EOS)
    found = pool_tokens(states, pool="eos", tokens=padded, mask=MASK, eos_id=EOS)
    torch.testing.assert_close(found, _loop(states, "eos"))
    for pool in ("eos", "last", "mean"):
        assert pool_tokens(states, pool=pool, tokens=padded, mask=none, eos_id=EOS).isfinite().all()


def test_the_linear_head_is_one_matrix_of_clips_scale() -> None:
    torch.manual_seed(0)
    head = make_head("linear", features=256, width=512)
    assert [tuple(p.shape) for p in head.parameters()] == [(512, 256)]
    assert next(head.parameters()).std().item() == pytest.approx(256**-0.5, rel=0.02)


def test_the_mlp_head_is_linear_relu_linear() -> None:
    head = make_head("mlp", features=6, width=4)
    assert isinstance(head, nn.Sequential)
    first, _, second = head
    x = torch.randn(3, 6)
    torch.testing.assert_close(head(x), second(torch.clamp(first(x), min=0)))
    assert second.out_features == 4


def test_no_head_needs_equal_widths() -> None:
    assert not list(make_head("none", features=8, width=8).parameters())
    with pytest.raises(UserError, match="width of 6"):
        make_head("none", features=6, width=8)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(UserError, match="linear, affine, mlp, pooler, gelu_half, gelu_double, none"):
        make_head("linar", features=6, width=8)  # type: ignore[arg-type]


def test_embeddings_have_unit_length_in_float32_even_under_autocast() -> None:
    head = make_head("linear", features=16, width=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = embed(torch.randn(5, 16), head)
    assert embedding.whole.dtype == torch.float32
    torch.testing.assert_close(embedding.whole.norm(dim=1), torch.ones(5), rtol=1e-6, atol=0)
    assert embedding.features.shape == (5, 16)
    assert embed(torch.randn(5, 16, dtype=torch.float64), head.double()).whole.dtype == torch.float64
