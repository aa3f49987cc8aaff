import math
from dataclasses import replace

import pytest

from rank_work import step
from tiny import tiny, write_photos
from unicl.objective.plan import Tiling
from unicl.run import Job, train
from unicl.train.compute import ComputeSettings
from unicl.train.step import tiling_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), each=4)


def test_the_settings_reach_the_objective():
    asked = ComputeSettings(keep_mb=7, exchange="ring", scores="bf16")
    assert tiling_of(asked) == Tiling(keep=7 << 20, exchange="ring", operands="bf16")


def test_kept_scores_change_nothing(data):
    (first, one), (second, two) = (step("itl", data, compute=ComputeSettings(keep_mb=n)) for n in (0, 400))
    assert math.isclose(first, second, rel_tol=1e-13)
    assert all((one[name] - two[name]).abs().max() < 1e-12 for name in one)


def test_how_a_step_is_computed_may_change_when_a_run_is_resumed(data, tmp_path):
    recipe = tiny("clip", steps=2)
    train(Job(recipe=recipe, data=data), tmp_path / "run")
    longer = replace(recipe, fit=replace(recipe.fit, steps=4), compute=ComputeSettings(chunk=5, keep_mb=0))
    outcome = train(Job(recipe=longer, data=data), tmp_path / "run", resume=True)
    assert (outcome.step, outcome.code) == (4, 0)
