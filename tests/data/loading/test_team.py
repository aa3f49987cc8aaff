import queue
import threading

import pytest
import torch

from loader_work import Counting
from unicl.data.loading.ring import Watch
from unicl.data.loading.team import Team, failure
from unicl.errors import UserError


def made(maker, steps, *, threads):
    answers = queue.SimpleQueue()
    team = Team(maker, watch=Watch.alone(threads))
    for step in steps:
        team.start(step, out=torch.zeros(maker.shape, dtype=torch.uint8), done=lambda *answer: answers.put(answer))
    found = dict(answers.get(timeout=30) for _ in steps)
    team.close()
    return found


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_each_step_is_answered_once_with_its_own_rows(threads):
    found = made(Counting(), range(20), threads=threads)
    assert sorted(found) == list(range(20))
    assert all(found[k].batch.images[:, 0, 0, 0].tolist() == list(range(4 * k, 4 * k + 4)) for k in found)


def test_a_fault_is_the_answer_of_its_step_alone():
    found = made(Counting("fail", at=10), range(6), threads=2)
    assert [step for step in found if isinstance(found[step], UserError)] == [2]
    assert "reading numbers/10 failed" in str(found[2])


def test_a_closed_team_leaves_no_thread_and_drops_what_was_not_begun():
    before = threading.active_count()
    gate, begun = threading.Event(), []

    class Waiting(Counting):
        def draw(self, position, *, out):
            begun.append(position)
            gate.wait(30)
            return super().draw(position, out=out)

    team = Team(Waiting(), watch=Watch.alone(1))
    for step in range(5):
        team.start(step, out=torch.zeros(Counting.shape, dtype=torch.uint8), done=lambda *_: None)
    while not begun:
        pass
    opener = threading.Timer(0.05, gate.set)
    opener.start()
    team.close(patience=30)
    opener.join()
    assert begun == [0]
    assert threading.active_count() == before


def test_a_failure_is_one_line_with_its_place():
    try:
        raise OSError("first line\nsecond line")
    except OSError as error:
        told = failure("reading photos/1.jpg", error)
    assert str(told).startswith("reading photos/1.jpg failed: OSError: first line (test_team.py, line ")
    assert "second line" not in str(told)
    assert told.code == 1
