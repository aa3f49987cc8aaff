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
FILES = ("embeddings.npy", "items.jsonl", "manifest.json", "skipped.jsonl")


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
        "parts": None,
        "format": 2,
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


def test_a_chunk_that_was_half_written_does_not_count(model, photos, tmp_path):
    out = tmp_path / "v"
    whole = embed(model, [photos], out=tmp_path / "whole")
    (out / "chunks").mkdir(parents=True)
    (out / "chunks" / "0123.npy").write_bytes(b"\x93NUMPY")
    (out / "chunks" / "0123.jsonl.part").write_text('{"id": "x"')
    assert np.array_equal(embed(model, [photos], out=out).values, whole.values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "parted"])
def test_a_killed_run_goes_on_where_it_stopped(name, request, photos, tmp_path):
    model = request.getfixturevalue(name)
    model.save(tmp_path / "model")
    whole = embed(model, [photos], out=tmp_path / "whole", batch=1, chunk=1)
    out = tmp_path / "v"
    command = [sys.executable, "-c", RUN, str(tmp_path / "model"), str(photos), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    chunks = out / "chunks"
    while process.poll() is None and len(list(chunks.glob("*.skipped.jsonl"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(chunks.glob("*.skipped.jsonl")))
    resumed = embed(model, [photos], out=out, batch=1, chunk=1)
    assert 3 <= kept < 13
    assert names(resumed) == names(whole)
    assert np.allclose(resumed.values, whole.values, atol=1e-6)
    assert (resumed.parts is None) == (name == "model")
    assert resumed.parts is None or np.allclose(resumed.parts, whole.parts, atol=1e-3)
    assert not chunks.exists()


def test_parts_stand_beside_the_vectors_in_half_precision(parted, photos, tmp_path):
    vectors = embed(parted, [photos], out=tmp_path / "v", batch=5, chunk=4)
    found = parted.encode_images([item.image for item in vectors.items()])
    assert np.allclose(vectors.values, found.whole.numpy(), atol=1e-6)
    assert vectors.parts.dtype == np.float16
    assert vectors.parts.shape == found.parts.values.shape
    assert np.allclose(vectors.parts, found.parts.values.numpy(), atol=1e-3)
    made = json.loads((tmp_path / "v" / "manifest.json").read_text())
    assert made["parts"] == {"count": vectors.parts.shape[1], "width": 32}
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == sorted([*FILES, "parts.npy"])


def test_parts_are_left_out_where_they_are_not_asked_for(parted, model, photos, tmp_path):
    for own, parts in ((parted, False), (model, True)):
        out = tmp_path / own.settings.recipe
        assert embed(own, [photos], out=out, parts=parts).parts is None
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    for folder, parts, message in (
        ("filip", True, "without parts, and this run would write vectors with them"),
        ("with", False, "with parts, and this run would write vectors without them"),
    ):
        embed(parted, [photos], out=tmp_path / "with")
        with pytest.raises(UserError, match=message):
            embed(parted, [photos], out=tmp_path / folder, parts=parts)


def test_a_later_picture_is_embedded_alone_and_parts_follow_the_order(parted, photos, tmp_path, monkeypatch):
    out = tmp_path / "v"
    before = np.array(embed(parted, [photos], out=out).parts)
    Image.new("RGB", (40, 40), "blue").save(photos / "new.png")
    seen = []
    real = module.decoded
    monkeypatch.setattr(module, "decoded", lambda p, **rest: seen.extend(x.id for x in p) or real(p, **rest))
    monkeypatch.setattr(module, "BLOCK", 5000)
    after = embed(parted, [photos], out=out)
    assert [id.rpartition("/")[2] for id in seen] == ["new.png"]
    assert names(after)[0] == "new.png"
    assert np.array_equal(after.parts[1:], before)
    wanted = parted.encode_images([photos / "new.png"]).parts.values[0].numpy()
    assert np.allclose(after.parts[0], wanted, atol=1e-3)


def test_a_stopped_run_ends_in_the_same_files(parted, photos, tmp_path, monkeypatch):
    embed(parted, [photos], out=tmp_path / "whole", batch=1, chunk=4)
    real, calls = module.packed, []

    def failing(parts, **rest):
        calls.append(1)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        return real(parts, **rest)

    monkeypatch.setattr(module, "packed", failing)
    out = tmp_path / "v"
    with pytest.raises(UserError, match="No space left"):
        embed(parted, [photos], out=out, batch=1, chunk=4)
    # What a run leaves that is killed between the files of a chunk: without its list, the chunk does not count.
    (out / "chunks" / "0123.parts.npy").write_bytes(b"\x93NUMPY")
    (out / "parts.npy.part").write_bytes(b"half")
    embed(parted, [photos], out=out, batch=1, chunk=4)
    assert len(calls) == 7 + 9
    for name in ("parts.npy", *FILES):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_large_folder_is_announced(parted, photos, tmp_path, monkeypatch, capsys):
    embed(parted, [photos], out=tmp_path / "small", progress=True)
    assert "the parts of" not in capsys.readouterr().err
    monkeypatch.setattr(module, "LARGE", 1000)
    embed(parted, [photos], out=tmp_path / "large", progress=True)
    assert "the parts of 13 pictures" in " ".join(capsys.readouterr().err.split())
    embed(parted, [photos], out=tmp_path / "large", progress=True)
    assert "the parts of" not in capsys.readouterr().err


def test_a_run_that_fails_half_way_keeps_its_chunks(model, photos, tmp_path, monkeypatch):
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
