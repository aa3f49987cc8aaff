import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import encoded, noise
from tiny import tiny, write_photos
from unicl.data.image import decode
from unicl.data.shards.manifest import ShardSettings, read_manifest
from unicl.data.shards.write import plan, shard
from unicl.data.sources import load, load_all, read_bytes
from unicl.errors import UserError
from unicl.run import Job, train

SMALL = ShardSettings(resize=16, per_shard=10)


def plain(samples):
    return sorted((s.id, s.captions, s.labels, s.namespace, s.image is None) for s in samples)


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty pictures in three class folders, a table with captions of them."""
    return write_photos(tmp_path_factory.mktemp("data"), each=10)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """PNG, JPEG and transparent pictures, with Chinese texts, several captions, a text alone and odd labels."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [{"text": ["只有文字", "text alone"], "label": "0"}]
    for k in range(12):
        pixels = noise(40 + k, 60, channels=4 if k % 3 == 0 else 3, seed=k)
        name = f"{k}.png" if k % 2 or k % 3 == 0 else f"{k}.jpg"
        (folder / name).write_bytes(encoded(pixels, "PNG" if name.endswith("png") else "JPEG"))
        rows.append(
            {
                "image": name,
                "text": [f"第{k}张图片", f"line one\nline two {k}"][: k % 3],
                "label": ["红色", "a|b"][: k % 2],
            }
        )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "t.jsonl").write_text(lines, encoding="utf-8")
    return f"{folder / 't.jsonl'}?namespace=shop"


def test_reading_shards_back_gives_the_samples_of_the_source(photos, mixed, tmp_path):
    for number, typed in enumerate((*photos, mixed)):
        source = load(typed)
        for settings in (SMALL, ShardSettings(per_shard=7), ShardSettings(size_mb=0.02, shuffle=None)):
            out = tmp_path / f"{number}{settings.size_mb}{settings.resize}"
            shard([source], out, settings=settings)
            assert plain(load(str(out)).samples) == plain(source.samples)


def test_several_sources_become_one_with_their_own_namespaces(photos, mixed, tmp_path):
    sources = load_all([*photos, mixed])
    shard(sources, tmp_path / "out", settings=SMALL)
    back = load(str(tmp_path / "out")).samples
    wanted = [(f"{source.name}/{s.id}", s.namespace, s.captions) for source in sources for s in source.samples]
    assert sorted((s.id, s.namespace, s.captions) for s in back) == sorted(wanted)
    assert Counter(s.namespace for s in back) == {"photos": 30, "captions.csv": 30, "shop": 13}


def test_images_are_those_of_the_source_resized_or_copied(mixed, tmp_path):
    source = load(mixed)
    images = {s.id: s.image for s in source.samples if s.image is not None}
    shard([source], tmp_path / "copied")
    for sample in load(str(tmp_path / "copied")).samples:
        if sample.image is not None:
            assert read_bytes(sample.image) == read_bytes(images[sample.id])
    shard([source], tmp_path / "small", settings=SMALL)
    for sample in load(str(tmp_path / "small")).samples:
        if sample.image is not None:
            before, after = decode(images[sample.id]), decode(sample.image)
            assert min(after.shape[1:]) == 16
            assert after.shape[2] == round(60 * 16 / before.shape[1])
            assert abs(before.float().mean() - after.float().mean()) < 6


def test_members_are_what_other_programs_expect(mixed, tmp_path):
    shard([load(mixed)], tmp_path, settings=ShardSettings(resize=16, shuffle=None))
    with tarfile.open(tmp_path / "0000.tar") as tar:
        names = tar.getnames()
        texts = {m.name: tar.extractfile(m).read().decode() for m in tar if not m.name.endswith("jpg")}
    assert names[:2] == ["000000000.txt", "000000000.json"]
    assert [n for n in names if n.startswith("000000002.")] == ["000000002.jpg", "000000002.txt", "000000002.json"]
    assert texts["000000002.txt"] == "第1张图片"
    fields = json.loads(texts["000000003.json"])
    assert fields == {
        "unicl": 1,
        "id": "2.jpg",
        "namespace": "shop",
        "captions": ["第2张图片", "line one\nline two 2"],
        "labels": [],
        "width": 23,
        "height": 16,
    }


def test_bytes_depend_on_nothing_but_the_data_and_the_settings(photos, tmp_path):
    for name, workers in (("one", 1), ("four", 4)):
        shard([load(photos[0])], tmp_path / name, settings=SMALL, workers=workers)
    assert tars(tmp_path / "one") == tars(tmp_path / "four")
    assert list(tars(tmp_path / "one")) == ["0000.tar", "0001.tar", "0002.tar"]
    other = ShardSettings(resize=16, per_shard=10, shuffle=1)
    shard([load(photos[0])], tmp_path / "other", settings=other)
    assert tars(tmp_path / "other")["0000.tar"] != tars(tmp_path / "one")["0000.tar"]


def test_classes_are_mixed_over_the_shards_unless_their_order_is_kept(photos, tmp_path):
    source = load(photos[0])
    shard([source], tmp_path / "mixed", settings=SMALL)
    shard([source], tmp_path / "kept", settings=ShardSettings(resize=16, per_shard=10, shuffle=None))
    for name, classes in (("mixed", 3), ("kept", 1)):
        for tar in (tmp_path / name).glob("*.tar"):
            assert len({s.labels for s in load(str(tar)).samples}) == classes


def test_a_shard_is_full_at_its_size(photos, tmp_path):
    shard([load(photos[0])], tmp_path, settings=ShardSettings(size_mb=0.01))
    sizes = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            sizes.append(sum(512 + -(-member.size // 512) * 512 for member in tar))
    assert len(sizes) > 2
    assert max(sizes) <= 10_000
    assert min(sizes[:-1]) > 5_000
    shard([load(photos[0])], tmp_path / "tiny", settings=ShardSettings(size_mb=1e-6))
    assert len(tars(tmp_path / "tiny")) == 30


def test_the_list_of_shards_says_what_they_hold(photos, tmp_path):
    source = load(photos[0])
    summary = shard([source], tmp_path, settings=SMALL)
    manifest = read_manifest(tmp_path / "shards.json")
    assert manifest == summary.manifest
    assert manifest.finished
    assert [(s.name, s.samples, s.images, s.verified) for s in manifest.shards] == [
        (f"000{k}.tar", 10, 10, True) for k in range(3)
    ]
    assert sum(s.read for s in manifest.shards) == sum(s.image.stat().st_size for s in source.samples)
    for entry in manifest.shards:
        sum256 = subprocess.run(["sha256sum", tmp_path / entry.name], capture_output=True, text=True, check=True).stdout
        assert sum256.split()[0] == entry.sha256
    report = summary.report(tmp_path)
    assert "30 samples in 3 shards" in report
    assert "30 images in" in report


def test_training_sees_the_same_classes_and_captions(photos, tmp_path):
    sources = load_all(photos)
    shard(sources, tmp_path / "shards", settings=ShardSettings(resize=32, per_shard=25))
    back = load(str(tmp_path / "shards"))
    for part in ("labels", "captions"):
        assert {(s.namespace, v) for s in back.samples for v in getattr(s, part)} == {
            (s.namespace, v) for source in sources for s in source.samples for v in getattr(s, part)
        }
    outcome = train(Job(recipe=tiny("itl", steps=2), data=(str(tmp_path / "shards"),)), tmp_path / "run")
    assert outcome.code == 0


def broken(folder, *, each=4):
    photos, captions = write_photos(folder, each=each)
    Path(photos, "red", "0.png").write_bytes(b"no image")
    Path(photos, "blue", "1.png").write_bytes(Path(photos, "blue", "1.png").read_bytes()[:200])
    Path(photos, "green", "2.png").unlink()
    return photos, captions


def test_bad_images_are_left_out_counted_and_listed(tmp_path):
    _, captions = broken(tmp_path)
    summary = shard([load(captions)], tmp_path / "out", settings=ShardSettings(per_shard=4))
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == {
        "captions.csv/photos/red/0.png": "not an image",
        "captions.csv/photos/blue/1.png": "cut off",
        "captions.csv/photos/green/2.png": "missing file",
    }
    assert len(load(str(tmp_path / "out")).samples) == 9
    assert [s.samples for s in summary.manifest.shards] == [4, 4, 1]
    assert sum(len(s.left_out) for s in summary.manifest.shards) == 3
    assert "3 left out, listed in" in summary.report(tmp_path / "out")


def test_too_many_bad_images_end_the_work_and_more_can_be_allowed(tmp_path):
    _, captions = broken(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"3 samples cannot be read, more than --max-bad 2 allows"):
        shard([load(captions)], out, settings=ShardSettings(per_shard=2), max_bad=2)
    assert not list(out.glob("*.part"))
    shard([load(captions)], out, settings=ShardSettings(per_shard=2))
    shard([load(captions)], tmp_path / "at once", settings=ShardSettings(per_shard=2))
    assert tars(out) == tars(tmp_path / "at once")
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 3


def test_data_without_one_good_image_is_an_error(tmp_path):
    photos, _ = write_photos(tmp_path, each=1)
    for path in Path(photos).rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 3 samples can be read; see .*quarantine.jsonl"):
        shard([load(photos)], tmp_path / "out")
    assert tars(tmp_path / "out") == {}


def test_a_finished_job_is_left_as_it_is(photos, tmp_path):
    shard([load(photos[0])], tmp_path, settings=SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    summary = shard([load(photos[0])], tmp_path, settings=SMALL)
    assert summary.images == 0
    assert "nothing to do" in summary.report(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_shards_that_are_gone_or_cut_off_are_written_again(photos, tmp_path):
    shard([load(photos[0])], tmp_path, settings=SMALL)
    whole = tars(tmp_path)
    (tmp_path / "0001.tar").unlink()
    shard([load(photos[0])], tmp_path, settings=SMALL)
    assert tars(tmp_path) == whole
    (tmp_path / "0002.tar").write_bytes(whole["0002.tar"][:5000])
    assert shard([load(photos[0])], tmp_path, settings=SMALL).images == 10
    assert tars(tmp_path) == whole


def test_another_job_or_other_things_in_the_folder_are_an_error(photos, tmp_path):
    shard([load(photos[0])], tmp_path / "out", settings=SMALL)
    with pytest.raises(UserError, match=r"holds another job: resize was 16 and is 24\. Give another folder"):
        shard([load(photos[0])], tmp_path / "out", settings=ShardSettings(resize=24, per_shard=10))
    with pytest.raises(UserError, match=r"the data was .*photos and is .*captions.csv"):
        shard([load(photos[1])], tmp_path / "out", settings=SMALL)
    with pytest.raises(UserError, match=r"holds other things \('blue'\)"):
        shard([load(photos[0])], Path(photos[0]), settings=SMALL)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write shards to .*file': (File exists|Not a directory)"):
        shard([load(photos[0])], tmp_path / "file", settings=SMALL)


def test_data_that_changed_since_is_another_job(tmp_path):
    photos, _ = write_photos(tmp_path, each=3)
    shard([load(photos)], tmp_path / "out", settings=SMALL)
    Path(photos, "red", "9.png").write_bytes(encoded(noise()))
    with pytest.raises(UserError, match="the data has changed: it had 9 samples and has 10"):
        shard([load(photos)], tmp_path / "out", settings=SMALL)


def test_data_may_move_between_two_runs_of_one_job(tmp_path):
    (tmp_path / "a").mkdir()
    photos, _ = write_photos(tmp_path / "a", each=3)
    shard([load(photos)], tmp_path / "out", settings=SMALL)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert shard([load(str(tmp_path / "b" / "photos"))], tmp_path / "out", settings=SMALL).images == 0


def test_two_writers_of_one_folder_do_not_meet(photos, tmp_path):
    source, errors = load(photos[0]), []

    def write():
        try:
            shard([source], tmp_path, settings=ShardSettings(resize=16, per_shard=1))
        except UserError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another process writes to" in error for error in errors)
    assert len(errors) < 2
    assert len(tars(tmp_path)) == 30


def test_a_plan_says_what_will_be_done(photos):
    sources = load_all([f"{photos[0]}?weight=2", photos[1]])
    said = plan(sources, ShardSettings(resize=256, per_shard=500, size_mb=100))
    assert "60 samples of photos (class folder), captions.csv (csv) to shards of 500 samples or 100 MB" in said
    assert "JPEG of quality 95" in said
    assert "shuffled with seed 0" in said
    assert "the weight 2 of photos is not kept in shards" in said
    kept = plan(sources, ShardSettings(shuffle=None))
    assert "images copied as they are" in kept
    assert "in the order of the data" in kept
    assert "shards of 10,000 samples" in kept
    assert "shards that are there already: 2" in plan(sources, ShardSettings(), begun=2)


COMMAND = "from unicl.cli import main; main()"


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "shard", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Pictures that take a while, some of them bad; and the shards of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for k in range(150):
        path = folder / "photos" / f"class{k % 5}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((800, 600)).save(path)
        if k % 37 == 5:
            path.write_bytes(path.read_bytes()[:500])
    settings = ShardSettings(resize=256, per_shard=5)
    shard([load(str(folder / "photos"))], folder / "whole", settings=settings)
    return folder


def test_killed_at_a_random_moment_and_run_again_gives_the_same_bytes(many, tmp_path):
    out, rng = tmp_path / "out", random.Random(os.getpid())
    for after in sorted(rng.sample(range(1, 20), 2)):
        process = command(many / "photos", "--out", out, "--resize", 256, "--per-shard", 5, "--workers", 2)
        while process.poll() is None and len(list(out.glob("*.tar"))) < after:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert set(tars(out).items()) <= set(tars(many / "whole").items())
    assert len(tars(out)) < len(tars(many / "whole"))
    assert "is not finished" in load(str(out)).notes[0]
    shard([load(str(many / "photos"))], out, settings=ShardSettings(resize=256, per_shard=5))
    assert tars(out) == tars(many / "whole")
    for name in ("shards.json", "quarantine.jsonl"):
        assert (out / name).read_text() == (many / "whole" / name).read_text()
    assert not list(out.glob("*.part"))
    assert load(str(out)).notes == ()


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


@pytest.mark.slow
def test_a_full_disk_leaves_whole_shards_and_a_message(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(9):
        # From the seventh on, a shard is larger than any file may be, which the system reports as it does a full disk.
        (tmp_path / "photos" / f"{k}.bmp").write_bytes(encoded(noise(20 if k < 6 else 400, 300, seed=k), "BMP"))
    arguments = (tmp_path / "photos", "--per-shard", 3, "--keep-order", "--out", tmp_path / "out")
    process = command(*arguments, preexec_fn=limit_files)
    _, said = process.communicate()
    assert process.returncode == 1
    assert f"cannot write shards to '{tmp_path / 'out'}': File too large" in said
    assert "finished shards are kept, and the same command goes on from there" in said
    assert "Traceback" not in said
    left = tars(tmp_path / "out")
    assert sorted(left) == ["0000.tar", "0001.tar"]
    assert not list((tmp_path / "out").glob("*.part"))
    settings = ShardSettings(per_shard=3, shuffle=None)
    assert shard([load(str(tmp_path / "photos"))], tmp_path / "out", settings=settings).images == 3
    assert left.items() < tars(tmp_path / "out").items()


def test_a_run_killed_before_its_first_shard_leaves_a_folder_to_begin_in(photos, tmp_path):
    (tmp_path / "shards.json.0123abcd.part").write_text("{")
    shard([load(photos[0])], tmp_path, settings=SMALL)
    (tmp_path / "0001.tar.part").write_bytes(b"half")
    (tmp_path / "0001.tar.part.index").write_bytes(b"half")
    (tmp_path / "0002.tar").unlink()
    shard([load(photos[0])], tmp_path, settings=SMALL)
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


def test_the_images_of_a_study_stay_together(tmp_path):
    rows = []
    for study, view in ((s, v) for s in range(5) for v in range(1 + s % 3)):
        (tmp_path / f"{study}_{view}.png").write_bytes(encoded(noise(seed=10 * study + view)))
        rows.append(f"{study}_{view}.png,report {study},s{study}")
    table = tmp_path / "studies.csv"
    table.write_text("\n".join(["file,text,exam", *rows]) + "\n")
    source = load(f"{table}?study=exam")
    out = tmp_path / "shards"
    shard([source], out, settings=ShardSettings(per_shard=2), workers=1)
    found = {sample.id: sample for sample in load(str(out)).samples}
    assert {id: sample.captions for id, sample in found.items()} == {s.id: s.captions for s in source.samples}
    for sample in source.samples:
        contents = [read_bytes(image) for image in sample.images]
        assert [read_bytes(image) for image in found[sample.id].images] == contents
