import pytest
import torch

from unicl.train import memory
from unicl.train.memory import free_bytes, peak_bytes

CPU = torch.device("cpu")
MB = 1 << 20


def million(scale=1):
    return torch.zeros(scale * MB, dtype=torch.uint8)


def test_the_peak_is_what_is_alive_at_one_time():
    def work():
        for _ in range(5):
            million()
        both = million(2), million()
        return both[0].sum()

    peak = peak_bytes(work, device=CPU)
    assert 3 * MB <= peak < 3 * MB + 1000


def test_views_and_what_was_there_before_take_nothing():
    before = million()
    assert peak_bytes(lambda: before.view(-1, 2).T[:, 5:].add_(1), device=CPU) < 1000


def test_what_the_forward_pass_keeps_for_the_backward_pass_counts():
    weight = torch.zeros(MB // 4, requires_grad=True)

    def work(times):
        value = weight
        for _ in range(times):
            value = value.exp()
        value.sum().backward()
        weight.grad = None

    few, many = (peak_bytes(lambda n=n: work(n), device=CPU) for n in (4, 12))
    assert many - few == pytest.approx(8 * MB, rel=0.01)


def test_checkpointing_is_seen_with_what_it_computes_again():
    layers = torch.nn.Sequential(*(torch.nn.Sequential(*(torch.nn.Tanh() for _ in range(4))) for _ in range(8)))
    rows = torch.zeros(MB // 4, requires_grad=True)

    def kept():
        layers(rows).sum().backward()

    def again():
        value = rows
        for layer in layers:
            value = torch.utils.checkpoint.checkpoint(layer, value, use_reentrant=False)
        value.sum().backward()

    whole, saved = (peak_bytes(work, device=CPU) for work in (kept, again))
    assert whole >= 32 * MB
    assert 8 * MB + 4 * MB <= saved < 0.6 * whole


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = free_bytes(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(CPU) == pytest.approx(alone / 4, rel=0.2)


@pytest.mark.parametrize(
    ("folder", "files", "free"),
    [
        (
            "",
            {"memory.max": "50000000", "memory.current": "30000000", "memory.stat": "file 9\ninactive_file 5"},
            20000005,
        ),
        ("", {"memory.max": "max", "memory.current": "30000000", "memory.stat": "inactive_file 5"}, None),
        (
            "memory",
            {
                "memory.limit_in_bytes": "40000000",
                "memory.usage_in_bytes": "30000000",
                "memory.stat": "total_inactive_file 7",
            },
            10000007,
        ),
    ],
)
def test_the_limit_of_a_container_counts(folder, files, free, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, text in files.items():
        (tmp_path / folder / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    if free is None:
        assert free_bytes(CPU) > 50000000
    else:
        assert free_bytes(CPU) == free


def test_a_system_without_a_list_of_its_memory_plans_with_half(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "missing")
    assert free_bytes(CPU) > 10**7
