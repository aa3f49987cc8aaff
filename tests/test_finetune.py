import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import tiny, write_photos
from unicl.data.sources import load_all
from unicl.dials import Dials
from unicl.errors import UserError
from unicl.evaluate.run import evaluate
from unicl.finetune import Asked, begin, fine_tune, resumed
from unicl.model import load_model
from unicl.run import Job, train
from unicl.use.merge import interpolate

DIALS = Dials(steps=4, batch=6, lr=1e-3, save_every=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("finetune"), each=4, findings=True)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A CLIP of photos and captions, in a few steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(Job(recipe=tiny("clip", steps=3), data=data[1:]), out)
    return str(out)


def asked(model, data, **more):
    return Asked(model=model, data=(data[0],), **more)


def tuned(model, data, out, *, dials=DIALS, wise=(0.5,), **more):
    job, start = begin(asked(model, data, **more), out, dials=dials)
    return fine_tune(job, out, start=start, wise=wise)


def weights(out, step=4):
    return load_file(out / f"checkpoints/step-{step:08d}/model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def layered(trained, data, tmp_path_factory):
    """A run by cross-entropy, from start to end."""
    out = tmp_path_factory.mktemp("layered") / "run"
    assert tuned(trained, data, out, val=(data[0],), loss="cross_entropy", layer_decay=0.75, wise=(0.3,)).step == 4
    return out


def test_the_start_predicts_as_the_model_did(trained, data, layered):
    sources = load_all(data[:1])
    before, start = (evaluate(load_model(m), sources, tasks=("zeroshot",)) for m in (trained, layered / "start"))
    assert before.results[0].confusion == start.results[0].confusion
    assert before.numbers() == start.numbers()


def test_the_points_are_the_start_the_end_and_the_weights_between(data, layered):
    content = json.loads((layered / "finetune.json").read_text())
    assert [point["share"] for point in content] == [0.0, 0.3, 1.0]
    start, end = load_model(layered / "start"), load_model(layered)
    between = interpolate(start, end, alpha=0.3)
    assert equal(load_model(layered / "wise-0.3").state_dict(), between.state_dict())
    sources = load_all(data[:1])
    for model, point in zip((start, between, end), content):
        top = evaluate(model, sources, tasks=("zeroshot",)).numbers()["zeroshot/top1"]
        assert point["scores"][0]["value"] == top


def test_a_run_that_was_killed_goes_on_to_the_same_end(layered, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(layered, out)
    # What a kill after the second step leaves.
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    for name in ("run.json", "finetune.json"):
        (out / name).unlink()
    assert fine_tune(resumed(out), out, start=None, wise=(0.3,)).step == 4
    assert equal(weights(out), weights(layered))
    assert (out / "finetune.json").read_text() == (layered / "finetune.json").read_text()


def test_unicls_loss_trains_both_towers_and_keeps_them(trained, data, tmp_path):
    out = tmp_path / "run"
    tuned(trained, data, out, val=(data[0],))
    start, end = load_file(out / "start" / "model.safetensors"), weights(out)
    moved = {name.partition(".")[0] for name in end if not torch.equal(start[name], end[name])}
    assert moved == {"image", "text", "objective"}
    assert equal(start, load_model(trained).state_dict())
    assert load_model(out).text is not None


@pytest.mark.slow
def test_layer_decay_of_one_is_the_plain_run(trained, data, layered, tmp_path):
    tuned(trained, data, tmp_path / "one", loss="cross_entropy")
    job, start = begin(asked(trained, data, loss="cross_entropy"), tmp_path / "plain", dials=DIALS)
    fine_tune(replace(job, recipe=replace(job.recipe, stages=())), tmp_path / "plain", start=start)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "plain"))
    assert not equal(weights(tmp_path / "one"), weights(layered))


def test_findings_are_learned_by_a_sigmoid_and_measured_by_areas(trained, data, tmp_path, capsys):
    out, table = tmp_path / "run", data[1]
    job, start = begin(Asked(model=trained, data=(table,), val=(table,), fraction=0.5), out, dials=DIALS)
    assert job.recipe.terms[0].loss == "sigmoid"
    fine_tune(job, out, start=start)
    content = json.loads((out / "finetune.json").read_text())
    assert content[0]["scores"][0]["key"] == "findings/auc"
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = next(line["evaluation"] for line in logged if "evaluation" in line)
    assert found["findings/auc"] == content[-1]["scores"][0]["value"]
    assert "of 12 samples, drawn by the seed 0" in capsys.readouterr().err


def test_what_cannot_be_fine_tuned_says_why(trained, data, tmp_path):
    plain = tmp_path / "plain.csv"
    plain.write_text("file,title\n" + f"{data[0]}/red/0.png,a red square\n")
    with pytest.raises(UserError, match=r"neither labels nor findings"):
        begin(Asked(model=trained, data=(f"{plain}?root=/",)), tmp_path / "run")
    for name, columns in (("one", "finding:x,finding:y"), ("two", "finding:x,finding:z")):
        (tmp_path / f"{name}.csv").write_text(f"file,{columns}\n{data[0]}/red/0.png,1,0\n{data[0]}/red/1.png,0,1\n")
    both = tuple(f"{tmp_path}/{name}.csv?root=/" for name in ("one", "two"))
    with pytest.raises(UserError, match=r"the finding 'y' is in one table and not in another"):
        begin(Asked(model=trained, data=both), tmp_path / "run")
    with pytest.raises(UserError, match=r"is no run of fine-tuning; go on with unicl train --resume"):
        resumed(Path(trained))
    other = write_photos(tmp_path / "other", each=1)[0]
    (Path(other) / "red").rename(Path(other) / "reddish")
    with pytest.raises(UserError, match=r"has the class 'reddish'.*--loss unicl"):
        begin(asked(trained, data, val=(other,), loss="cross_entropy"), tmp_path / "run")
    with pytest.raises(UserError, match=r"none of the findings that are learned, such as 'blue'"):
        begin(Asked(model=trained, data=(data[1],), val=(other,)), tmp_path / "run")
    with pytest.raises(UserError, match=r"the fraction is 2"):
        tuned(trained, data, tmp_path / "run", fraction=2)


def test_without_validation_data_the_models_are_made_and_nothing_is_measured(trained, data, tmp_path, capsys):
    tuned(trained, data, tmp_path / "run", dials=replace(DIALS, steps=1))
    assert "give some with --val" in capsys.readouterr().out
    assert (tmp_path / "run" / "wise-0.5" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "finetune.json").exists()


def patients_table(folder, names, *, photos, findings="1 0 0"):
    """Two pictures of red and one of blue, each of a patient."""
    cells = zip(("red/0", "red/1", "blue/0"), names, findings.split(), strict=True)
    path = folder / f"{'-'.join(names)}-{findings.replace(' ', '')}.csv"
    rows = (f"{photos}/{image}.png,{image.partition('/')[0]},{name},{found}" for image, name, found in cells)
    path.write_text("\n".join(("file,label,patient,finding:odd", *rows)) + "\n")
    return f"{path}?root=/"


def test_patients_of_both_parts_are_told_and_one_class_or_finding_is_refused(trained, data, tmp_path, capsys):
    photos = data[0]
    first, second = (patients_table(tmp_path, names, photos=photos) for names in ("abc", "cde"))
    begin(Asked(model=trained, data=(first,), val=(second,)), tmp_path / "run")
    assert "patients of one name in the training and in the test data: 1 (such as 'c')" in capsys.readouterr().err
    for loss in ("unicl", "cross_entropy"):
        with pytest.raises(UserError, match=r"there is only one class, 'red'"):
            begin(Asked(model=trained, data=(f"{first}&where=label:red&findings=",), loss=loss), tmp_path / "run")
    none = patients_table(tmp_path, "abc", photos=photos, findings="0 0 0")
    with pytest.raises(UserError, match=r"no finding is there in some.*nothing to learn"):
        begin(Asked(model=trained, data=(none,)), tmp_path / "run")
    with pytest.raises(UserError, match=r"--val.: no finding is there in some"):
        begin(Asked(model=trained, data=(first,), val=(none,)), tmp_path / "run")
