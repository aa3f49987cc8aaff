import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from unicl.errors import UserError
from unicl.use import embed as module
from unicl.use.embed import embed
from unicl.use.vectors import fingerprint

RUN = """
import sys
from pathlib import Path
from unicl.model import load_model
from unicl.use.embed import embed
embed(load_model(sys.argv[1]), [sys.argv[2]], out=Path(sys.argv[3]), batch=1, chunk=1)
"""


def names(vectors):
    return [item.id.rpartition("/")[2] for item in vectors.items()]


def test_every_readable_picture_has_its_vector(model, photos, tmp_path):
    vectors = embed(model, [photos], out=tmp_path / "v", batch=5, chunk=4)
    items = list(vectors.items())
    assert vectors.values.shape == (12, 16)
    assert vectors.values.dtype == np.float32
    wanted = model.embed_image([item.image for item in items])
    assert np.allclose(vectors.values, wanted.numpy(), atol=1e-6)
    assert [item.reason for item in vectors.skipped()] != [""]
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        "embeddings.npy",
        "items.jsonl",
        "manifest.json",
        "skipped.jsonl",
    ]


def test_the_manifest_says_what_made_the_vectors(model, photos, tmp_path):
    embed(model, [photos], out=tmp_path / "v", view="classes", dtype="float16")
    made = json.loads((tmp_path / "v" / "manifest.json").read_text())
    assert made == {
        "model": fingerprint(model),
        "recipe": "itl",
        "view": "classes",
        "width": 8,
        "dtype": "float16",
        "count": 12,
        "skipped": 1,
        "paths": [str(photos)],
        "format": 1,
    }
    values = np.load(tmp_path / "v" / "embeddings.npy", mmap_mode="r")
    assert values.dtype == np.float16
    assert np.allclose(np.linalg.norm(values.astype(np.float32), axis=1), 1, atol=1e-2)


def test_a_second_run_writes_nothing(model, photos, tmp_path):
    out = tmp_path / "v"
    embed(model, [photos], out=out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}
    embed(model, [photos], out=out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()} == before


def test_only_new_and_changed_pictures_are_embedded_again(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "v"
    before = np.array(embed(model, [photos], out=out).values)
    Image.new("RGB", (40, 40), "red").save(photos / "flower" / "2.jpg")
    Image.new("RGB", (40, 40), "blue").save(photos / "new.png")
    (photos / "temple" / "5.jpg").unlink()
    seen = []
    real = module.decoded
    monkeypatch.setattr(module, "decoded", lambda p, **rest: seen.extend(x.id for x in p) or real(p, **rest))
    after = embed(model, [photos], out=out)
    assert sorted(id.rpartition("/")[2] for id in seen) == ["2.jpg", "new.png"]
    assert names(after) == ["new.png", *(f"{k}.jpg" for k in range(6)), *(f"{k}.jpg" for k in range(5))]
    wanted = model.embed_image([item.image for item in after.items()]).numpy()
    assert np.allclose(after.values, wanted, atol=1e-6)
    assert len(after.values) == len(before) == 12


def test_a_part_that_was_half_written_does_not_count(model, photos, tmp_path):
    out = tmp_path / "v"
    whole = embed(model, [photos], out=tmp_path / "whole")
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "0123.npy").write_bytes(b"\x93NUMPY")
    (out / "parts" / "0123.jsonl.part").write_text('{"id": "x"')
    assert np.array_equal(embed(model, [photos], out=out).values, whole.values)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(model, photos, tmp_path):
    model.save(tmp_path / "model")
    whole = embed(model, [photos], out=tmp_path / "whole")
    out = tmp_path / "v"
    command = [sys.executable, "-c", RUN, str(tmp_path / "model"), str(photos), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    parts = out / "parts"
    while process.poll() is None and len(list(parts.glob("*.npy"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(parts.glob("*.npy")))
    resumed = embed(model, [photos], out=out)
    assert kept >= 3
    assert names(resumed) == names(whole)
    assert np.allclose(resumed.values, whole.values, atol=1e-6)
    assert not parts.exists()


def test_a_run_that_fails_half_way_keeps_its_parts(model, photos, tmp_path, monkeypatch):
    real, calls = module.decoded, []

    def failing(part, **rest):
        calls.append(len(part))
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(part, **rest)

    monkeypatch.setattr(module, "decoded", failing)
    with pytest.raises(UserError, match="No space left.*goes on from there"):
        embed(model, [photos], out=tmp_path / "v", chunk=4)
    assert len(embed(model, [photos], out=tmp_path / "v", chunk=4).values) == 12
    assert calls == [4, 4, 4, 4, 1]


def test_a_folder_of_another_model_or_view_is_not_overwritten(model, other, photos, tmp_path):
    out = tmp_path / "v"
    embed(model, [photos], out=out)
    before = (out / "embeddings.npy").read_bytes()
    with pytest.raises(UserError, match="another model"):
        embed(other, [photos], out=out)
    with pytest.raises(UserError, match="view 'instances'.*'classes'"):
        embed(model, [photos], out=out, view="classes")
    with pytest.raises(UserError, match="dtype"):
        embed(model, [photos], out=out, dtype="float16")
    assert (out / "embeddings.npy").read_bytes() == before


def test_what_cannot_be_done_is_told(model, classifier, photos, tmp_path):
    with pytest.raises(UserError, match="none of the 1 pictures can be read"):
        embed(model, [photos / "cut.jpg"], out=tmp_path / "v")
    with pytest.raises(UserError, match="one kind of vector"):
        embed(classifier, [photos], out=tmp_path / "v", view="classes")
    with pytest.raises(UserError, match="at least 1"):
        embed(model, [photos], out=tmp_path / "v", batch=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        embed(model, [photos], out=tmp_path / "file")


def test_a_model_without_a_text_tower_embeds_too(classifier, photos, tmp_path):
    vectors = embed(classifier, [photos], out=tmp_path / "v")
    assert torch.allclose(torch.tensor(np.array(vectors.values)).norm(dim=1), torch.ones(12), atol=1e-5)
