import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tiny import tiny, write_photos
from unicl.errors import UserError
from unicl.run import Job, train


def locked(data, **image):
    recipe = tiny("clip", steps=2)
    made = replace(recipe, image=replace(recipe.image, locked=True), data=replace(recipe.data, augment=None, **image))
    return Job(recipe=made, data=data)


def test_a_locked_tower_sees_each_image_once_and_trains_alike(tmp_path):
    data = write_photos(tmp_path, each=4)
    (tmp_path / "photos" / "red" / "1.png").write_bytes(b"broken")
    job = locked(data)
    train(job, tmp_path / "run")
    features = load_file(tmp_path / "run" / "features.safetensors")["features"]
    assert features.shape[0] == 24
    assert features.isnan().any(dim=1).sum() == 2
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) <= 2
    loss = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    (tmp_path / "run" / "features.safetensors").rename(tmp_path / "kept.safetensors")
    train(job, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert loss == again
    assert torch.equal(
        load_file(tmp_path / "again" / "features.safetensors")["features"].nan_to_num(), features.nan_to_num()
    )


def test_features_of_other_data_are_refused(tmp_path):
    data = write_photos(tmp_path, each=4)
    train(locked(data), tmp_path / "run")
    (tmp_path / "photos" / "red" / "1.png").unlink()
    with pytest.raises(UserError, match="features"):
        train(locked(data), tmp_path / "run", resume=True)
