import pytest
import torch

from forks import run_forks
from gather_work import IMAGES, classified, columns, compared, comparisons, gather_work, viewed
from rank_work import free_port
from unicl.objective.peers import ALONE, own_rows
from unicl.train.ranks import Ranks, gather_objects, is_first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_forks(gather_work, free_port(), str(folder), processes=3)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


def test_what_rows_show_of_unequal_processes_comes_together_in_order(results):
    for result in (each["basics"] for each in results):
        assert result["rows"].tolist() == [0, 1, 2, 3, 4]
        assert result["keys"].tolist() == [100, 101, 102, 103, 104]
        assert result["counts"].tolist() == [1, 1, 1, 1, 1]
        assert result["sizes"].tolist() == [3, 0, 2]


def test_gradients_through_gathered_and_exchanged_rows_equal_one_process(results):
    whole = columns(5, first=0).images.whole
    weight = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad((whole @ weight).square().sum() * weight.sum(), weight)
    (second,) = torch.autograd.grad(sum(((whole @ weight) * n).square().sum() for n in (1, 2, 3)), weight)
    for result in (each["basics"] for each in results):
        assert torch.allclose(result["gradient"], first)
        assert torch.allclose(result["exchanged"], second)
        assert result["unused"].tolist() == [0, 0]


def test_decisions_are_shared(results):
    for result in (each["basics"] for each in results):
        assert result["any"].tolist() == [True, False]
        assert result["objects"].tolist() == [0, 1, 2]


def together(results, name, *, kind, places):
    """The gradients of all processes as one would have them: own rows over their number, parameters averaged."""
    each = [result[kind][name] for result in results]
    rows = [torch.cat([e[k] for e in each]) / len(each) for k in places]
    rest = [sum(e[k] for e in each) / len(each) for k in range(1, len(each[0])) if k not in places]
    return [e[0] for e in each], rows, rest


def test_every_blockwise_loss_of_three_unequal_processes_equals_one(results):
    alone = compared(peers=ALONE, alone=True)
    for name, _, _, _, parts, _ in comparisons():
        places = (1, 2) if parts is None else (1, 2, 3, 4)
        values, rows, rest = together(results, name, kind="compared", places=places)
        for value in values:
            torch.testing.assert_close(value, alone[name][0], rtol=1e-12, atol=1e-12, msg=name)
        wanted = [alone[name][k] for k in places]
        wanted += [g for k, g in enumerate(alone[name]) if k and k not in places]
        for own, gradient in zip([*rows, *rest], wanted):
            torch.testing.assert_close(own, gradient, rtol=1e-11, atol=1e-12, msg=name)


def test_views_of_three_unequal_processes_equal_one(results):
    alone = viewed(peers=ALONE)["gather"]
    for exchange in ("gather", "ring"):
        values, rows, rest = together(results, exchange, kind="viewed", places=(1, 2))
        for own, wanted in zip([*values, *rows, *rest], [alone[0]] * 3 + alone[1:]):
            torch.testing.assert_close(own, wanted, rtol=1e-11, atol=1e-12)


def test_a_linear_layer_of_three_unequal_processes_equals_one(results):
    alone = classified(peers=ALONE)
    for name, wanted in alone.items():
        values, rows, rest = together(results, name, kind="classified", places=(1,))
        for own, other in zip([*values, *rows, *rest], [wanted[0]] * 3 + wanted[1:]):
            torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-12, msg=name)


def test_the_first_process_knows_itself_without_the_others(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_first()
    monkeypatch.setenv("RANK", "1")
    assert not is_first()


def test_a_process_without_rows_has_an_empty_place():
    assert own_rows(IMAGES, rank=1) == slice(5, 5)


def test_one_process_needs_no_group():
    rows = torch.ones(2, 3)
    one = Ranks()
    assert one.gather(rows, sizes=(2,)) is rows
    assert one.scatter_sum(rows, sizes=(2,)) is rows
    assert one.pass_on(rows) is one.sum(rows) is one.max(rows) is rows
    assert one.sizes(4) == (4,)
    assert one.any(True)
    assert gather_objects("x", ranks=one) == ["x"]
