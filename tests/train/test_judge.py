import pytest

from unicl.errors import UserError
from unicl.train.judge import Judge
from unicl.train.record import Progress
from unicl.train.stages import Plateau, Stage


def test_the_best_is_the_highest_of_the_run_or_the_lowest_rank():
    for name, values in (("top1", (0.2, 0.5, 0.4)), ("median_rank", (9.0, 3.0, 4.0))):
        judge, progress = Judge(metric=name, patience=None, stages=(Stage(),)), Progress()
        found = []
        for step, value in enumerate(values, start=1):
            progress.step = step
            found.append(judge.best(progress, {"first": 0.0, name: value}))
        assert found == [True, True, False]
        assert progress.best_step == 2
        assert progress.metrics[name] == values[-1]


def test_a_stage_is_over_when_its_own_metric_has_not_got_better_for_long_enough():
    stages = (Stage(plateau=Plateau(metric="recall", patience=2)), Stage())
    judge, progress = Judge(metric="top1", patience=1, stages=stages), Progress()
    told = [judge.tired(progress, {"top1": k / 10, "recall": value}) for k, value in enumerate((0.1, 0.3, 0.3, 0.2))]
    assert told == ["", "", "", "no better recall for 2 evaluations"]
    progress.stage, progress.watched, progress.since_best = 1, None, 0
    assert [judge.tired(progress, {"top1": value}) for value in (0.1, 0.1)] == ["", "no better top1 for 1 evaluations"]


def test_it_says_whether_a_stage_ahead_waits():
    judge = Judge(metric=None, patience=None, stages=(Stage(plateau=Plateau()), Stage()))
    assert [judge.waits(Progress(stage=number)) for number in (0, 1)] == [True, False]


def test_metrics_that_are_not_there_are_named_with_those_that_are():
    stages = (Stage(plateau=Plateau(metric="recal")),)
    with pytest.raises(UserError, match=r"no metric 'recal'.*'recall'.*there are: top1, recall"):
        Judge(metric=None, patience=None, stages=stages).check({"top1": 0.0, "recall": 0.0})
    with pytest.raises(UserError, match="no metric 'top5'"):
        Judge(metric="top5", patience=None, stages=(Stage(),)).check({"top1": 0.0})


def test_an_evaluation_that_can_tell_nothing_is_not_the_best_and_ends_nothing():
    judge, progress = Judge(metric="top1", patience=1, stages=(Stage(),)), Progress(step=1)
    assert not judge.best(progress, {})
    assert judge.tired(progress, {}) == ""
    assert progress.best_step is None


def test_the_rate_is_halved_after_every_so_many_evaluations_without_a_better_one():
    judge, progress = Judge(metric="top1", patience=None, stages=(Stage(),), halve=2), Progress()
    halved = []
    for value in (0.3, 0.2, 0.3, 0.1, 0.1, 0.4, 0.4):
        assert judge.tired(progress, {"top1": value}) == ""
        halved.append(progress.halved)
    assert halved == [0, 0, 1, 1, 2, 2, 2]
