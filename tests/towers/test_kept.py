from dataclasses import replace

import pytest
import torch

from unicl.towers.kept import KeptTexts, digest, state_of
from unicl.towers.lengths import LEAST_ROWS
from unicl.towers.text import TextSettings, TextTower

SMALL = TextSettings(layers=2, dim=32, heads=4, context=16, locked=True)
VOCAB = 60


def tower(**changes):
    torch.manual_seed(0)
    return TextTower(replace(SMALL, **changes), width=16, vocab_size=VOCAB, eos_id=2, pad_id=0).train()


def texts(lengths, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(3, VOCAB, mask.shape, generator=generator).where(mask, 0), mask


@pytest.fixture
def reads(monkeypatch):
    """How many texts went through each call of a transformer."""
    rows = []
    plain = TextTower._read

    def counted(self, tokens, mask):
        rows.append(len(tokens))
        return plain(self, tokens, mask)

    monkeypatch.setattr(TextTower, "_read", counted)
    return rows


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_a_locked_transformer_reads_each_text_once(name, reads):
    found = tower(name=name)
    tokens, mask = texts([5, 9, 5, 12])
    first = found.features(tokens, mask)
    assert sum(reads) == 4
    again = found.features(tokens[[3, 0, 0]], mask[[3, 0, 0]])
    assert sum(reads) == 4
    assert torch.equal(again, first[[3, 0, 0]])
    found.keeps = False
    torch.testing.assert_close(found.features(tokens, mask), first, rtol=1e-5, atol=1e-6)
    assert sum(reads) == 8


def test_a_text_is_the_same_however_far_it_is_padded(reads):
    found = tower()
    tokens, mask = texts([4, 6])
    long = torch.nn.functional.pad(tokens, (0, 5)), torch.nn.functional.pad(mask, (0, 5))
    assert torch.equal(found.features(tokens, mask), found.features(*long))
    assert sum(reads) == 2


def test_what_is_kept_does_not_depend_on_what_it_was_read_with():
    tokens, mask = texts([7] * 40 + [16] * 3)
    together, alone = tower(), tower()
    found = together.features(tokens, mask)
    rows = torch.arange(len(tokens)).flip(0).split(5)
    parts = [alone.features(tokens[each], mask[each]) for each in rows]
    assert torch.equal(torch.cat(parts).flip(0), found)


def test_the_head_learns_from_kept_features_as_from_new_ones():
    tokens, mask = texts([5, 9, 12])
    gradients = []
    for keeps in (True, False):
        found = tower()
        found.keeps = keeps
        for _ in range(2):
            found.zero_grad()
            found(tokens, mask).whole[:, 0].sum().backward()
        assert [name for name, p in found.named_parameters() if p.grad is not None] == ["head.weight"]
        gradients.append(found.head.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_new_weights_another_lock_and_another_precision_are_noticed(reads):
    found = tower()
    tokens, mask = texts([5, 9])
    before = found.features(tokens, mask)
    with torch.no_grad():
        found.backbone.final_layer_norm.bias.add_(1.0)
    assert not torch.allclose(found.features(tokens, mask), before)
    state = {name: value.clone() for name, value in found.state_dict().items()}
    state["backbone.final_layer_norm.bias"] -= 1.0
    found.load_state_dict(state)
    torch.testing.assert_close(found.features(tokens, mask), before)
    assert sum(reads) == 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = found.features(tokens, mask)
        assert torch.equal(found.features(tokens, mask), halved)
    assert sum(reads) == 8
    assert not torch.equal(halved.float(), before)
    found.lock(False)
    assert not len(found.kept)
    assert found.features(tokens, mask).requires_grad
    found.lock(True)
    assert not found.features(tokens, mask).requires_grad


def test_nothing_is_kept_while_a_model_is_used_or_its_transformer_learns(reads):
    used, learning = tower().eval(), tower(locked=False)
    for found in (used, learning):
        for _ in range(2):
            found.features(*texts([5, 9]))
        assert not len(found.kept)
    assert sum(reads) == 8


def test_passes_with_and_without_gradients_share_what_is_kept(reads):
    found = tower()
    tokens, mask = texts([5, 9])
    with torch.no_grad():
        first = found(tokens, mask).whole
    second = found(tokens, mask).whole
    assert second.requires_grad
    assert torch.equal(first, second.detach())
    assert sum(reads) == 2


def test_a_tower_in_double_keeps_double_numbers():
    assert tower().double().features(*texts([5, 9])).dtype == torch.float64


def test_the_oldest_texts_are_forgotten_and_those_in_use_are_not():
    kept, asked = KeptTexts(limit=3 * 8 * 4), []

    def ask(*words):
        def read(rows):
            asked.extend(words[row] for row in rows)
            return [torch.full((8,), float(words[row])) for row in rows]

        tokens = torch.tensor(words)[:, None]
        return kept.features(tokens, torch.ones_like(tokens, dtype=torch.bool), mark=0, read=read)

    for words in ((1, 2), (1, 3), (1, 4), (1, 5)):
        assert ask(*words)[:, 0].tolist() == [float(word) for word in words]
    assert asked == [1, 2, 3, 4, 5]
    assert len(kept) == 3
    ask(4, 5)
    assert asked[-1] == 5
    ask(2)
    assert asked[-1] == 2
    assert ask(6, 7, 8, 9, 6)[:, 0].tolist() == [6, 7, 8, 9, 6]


def test_the_mark_of_weights_changes_when_they_are_written_or_moved():
    found = tower()
    marks = [state_of(found.backbone)]
    with torch.no_grad():
        next(found.backbone.parameters()).mul_(1.0)
    marks.append(state_of(found.backbone))
    marks.append(state_of(found.double().backbone))
    assert len(set(marks)) == 3
    assert state_of(found.backbone) == marks[-1]


def test_lengths_as_captions_have_them_leave_little_padding(monkeypatch):
    computed, plain = [], TextTower._read

    def measured(self, tokens, mask):
        computed.append((mask.numel(), int(mask.sum())))
        return plain(self, tokens, mask)

    monkeypatch.setattr(TextTower, "_read", measured)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.empty(256).log_normal_(3.0, 0.5, generator=generator) + 2
    lengths = drawn.clamp(8, 77).int().tolist()
    lengths[0] = 77
    assert 22 < sum(lengths) / len(lengths) < 27
    found = tower(locked=False, context=77)
    found.features(*texts(lengths))
    work, real = (sum(each) for each in zip(*computed, strict=True))
    assert real == sum(lengths)
    assert work < 1.12 * real


def test_few_texts_are_read_at_once(reads):
    found = tower(locked=False, context=77)
    found.features(*texts([3, 70, *[4] * (LEAST_ROWS - 3)]))
    assert len(reads) == 1


def test_a_digest_is_of_numbers_and_settings_and_not_of_their_layout():
    state = {"b": torch.arange(12.0).view(3, 4), "a": torch.tensor(1)}
    found = digest(("x", None), state)
    assert found == digest(("x", None), {"a": state["a"], "b": state["b"].T.contiguous().T})
    others = [
        digest(("y", None), state),
        digest(("x", None), {**state, "a": torch.tensor(2)}),
        digest(("x", None), {**state, "b": state["b"].double()}),
        digest(("x", None), {**state, "b": state["b"].view(4, 3)}),
        digest(("x", None), {"a": state["a"], "c": state["b"]}),
    ]
    assert len({found, *others}) == 6
