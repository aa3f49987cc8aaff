import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.train.optim import Average, OptimSettings, adamw
from unicl.train.record import Progress, Record, replace_text


@pytest.fixture
def parts():
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32), text=TextSettings(layers=1, dim=32, heads=2), width=8
    )
    model = TwoTowers(settings, tokenizer=train_tokenizer(["a b c d"], vocab_size=300, context=8))
    optimiser = adamw(model, OptimSettings())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    return model, optimiser


def test_a_checkpoint_is_a_model_folder_and_brings_everything_back(parts, tmp_path):
    model, optimiser = parts
    average = Average(model, decay=0.5)
    record = Record(out=tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    record.save(model, optimiser, progress=Progress(step=3, best=0.5, best_step=2), average=average)
    with torch.no_grad():
        next(model.parameters()).add_(7)
    progress = record.load(model, optimiser, average=average)
    assert (progress.step, progress.best) == (3, 0.5)
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())
    used = load_model(record.last()).state_dict()
    assert all(torch.equal(used[k], v) for k, v in average.state.items())


def test_the_end_of_a_stage_is_where_the_next_one_begins(parts, tmp_path):
    model, optimiser = parts
    average = Average(model, decay=0.5)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    record = Record(out=tmp_path)
    (tmp_path / "checkpoints").mkdir()
    record.save(model, optimiser, progress=Progress(step=3, stage=1, begun=3), average=average)
    larger = replace(model.settings, image=replace(model.settings.image, size=48))
    other = TwoTowers(larger, tokenizer=model.tokenizer)
    record.begin(other)
    same = {k: v for k, v in other.state_dict().items() if k != "image.backbone.pos_embed"}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in same.items())
    fresh, mean = adamw(other, OptimSettings()), Average(other, decay=0.5)
    progress = record.load(other, fresh, average=mean)
    assert (progress.switched, progress.stage, len(fresh.state)) == (True, 1, 0)
    assert all(torch.equal(mean.state[k], average.state[k]) for k in same)
    record.load(other, fresh, average=mean, keep=True)
    assert len(fresh.state) == len(list(other.parameters())) - 1
    assert not Progress(step=4, stage=1, begun=3).switched


def test_old_checkpoints_go_but_the_best_stays(parts, tmp_path):
    record = Record(out=tmp_path, keep=2)
    (tmp_path / "checkpoints").mkdir()
    for step in range(1, 6):
        record.save(*parts, progress=Progress(step=step, best=1.0, best_step=1), average=None)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000004", "step-00000005"]
    assert json.loads((tmp_path / "run.json").read_text())["best"] == "step-00000001"


def test_a_full_disk_loses_nothing_and_says_so(parts, tmp_path, monkeypatch):
    record = Record(out=tmp_path)
    (tmp_path / "checkpoints").mkdir()
    record.save(*parts, progress=Progress(step=1), average=None)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("unicl.train.state.save", full)
    with pytest.raises(UserError, match=r"cannot save step 2.*No space left.*step-00000001.*--resume") as caught:
        record.save(*parts, progress=Progress(step=2), average=None)
    assert caught.value.code == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert record.last().name == "step-00000001"


def test_a_half_written_checkpoint_is_never_taken_for_one(parts, tmp_path):
    record = Record(out=tmp_path)
    half = tmp_path / "checkpoints" / "step-00000009.part"
    half.mkdir(parents=True)
    (half / "state.json").write_text("{}")
    assert record.last() is None
    record.save(*parts, progress=Progress(step=9), average=None)
    assert record.last().name == "step-00000009"
    assert not half.exists()


def test_metrics_of_steps_that_will_be_taken_again_are_forgotten(tmp_path):
    record = Record(out=tmp_path)
    for step in range(1, 5):
        record.log({"step": step})
    with record.metrics_path.open("a") as file:
        file.write('{"step": 5, "lo')
    record.rewind(2)
    assert [json.loads(line)["step"] for line in record.metrics_path.read_text().splitlines()] == [1, 2]


def test_a_checkpoint_of_another_model_is_a_clear_error(parts, tmp_path):
    record = Record(out=tmp_path)
    (tmp_path / "checkpoints").mkdir()
    record.save(*parts, progress=Progress(step=1), average=None)
    other = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="cannot resume"):
        record.load(other, parts[1], average=None)


def test_text_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert list(Path(tmp_path).iterdir()) == [path]
