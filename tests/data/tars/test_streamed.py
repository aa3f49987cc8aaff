import io
import random
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pictures import picture
from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load, load_all, read_bytes
from unicl.data.stream import Place, Stream, StreamSettings
from unicl.data.tars.offsets import cache_folder
from unicl.data.tars.remote import LOCK, Patience
from unicl.data.tars.streamed import Shelf
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.space import RemoteTar, Streamed
from web import served

QUICK = Patience(delays=(0.0, 0.0), stall=20.0)
TARS, EACH = 6, 8
TOKENIZER = train_tokenizer(["picture 1 2 3 4 5 6"], vocab_size=300, context=16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six tars of eight pictures with captions."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(TARS):
        with tarfile.open(folder / f"000{number}.tar", "w") as tar:
            for k in range(EACH):
                for ending, content in (("png", picture(10 * number + k)), ("txt", f"picture {number} {k}".encode())):
                    info = tarfile.TarInfo(f"{k:05}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture
def little(shards, monkeypatch):
    """Room for two and a half of the six tars."""
    limit = 2.5 * (shards / "0000.tar").stat().st_size
    monkeypatch.setenv("UNICL_CACHE_GB", str(limit / 1e9))
    return limit


def kept():
    """The bytes of all tars that are here, whole or in part."""
    here = [path for path in (cache_folder() / "streamed").rglob("*") if not path.name.endswith((".index", LOCK))]
    return sum(path.stat().st_size for path in here if path.is_file())


def pipe(shards, fields="stream=8"):
    return f"pipe:cat {shards}/{{0000..000{TARS - 1}}}.tar?{fields}"


def stream(data, *, place=Place(), batch=8, seed=0, **settings):
    return Stream(
        load_all(data),
        StreamSettings(batch=batch, workers=3, **settings),
        texts=class_texts("en-short"),
        tokenizer=TOKENIZER,
        size=16,
        seed=seed,
        quarantine=Quarantine(limit=0),
        place=place,
    )


def remote(folder, tar, *, address=None):
    return RemoteTar(address or f"pipe:cat {tar}", folder / tar.name, tar.stat().st_size)


def member(tar, local):
    """The first picture of a tar."""
    with tarfile.open(local) as opened:
        info = opened.next()
        return Streamed(tar, info.offset_data, info.size), opened.extractfile(info).read()


def helped():
    """Wait until nothing is fetched ahead any more."""
    for thread in threading.enumerate():
        if thread.name == "unicl-fetch":
            thread.join(30)


def test_streamed_tars_are_the_same_samples_with_little_kept(shards, little):
    with served(shards) as (address, asked):
        source = load(f"{address}/{{0000..0005}}.tar?stream=true&namespace=n")
        assert kept() <= little
        here = load(f"{shards}?namespace=n")
        assert [replace(s, image=None) for s in source.samples] == [replace(s, image=None) for s in here.samples]
        order = random.Random(0).sample(range(TARS * EACH), 20)
        for k in order:
            assert read_bytes(source.samples[k].image) == read_bytes(here.samples[k].image)
            assert kept() <= little
        helped()
        before = len(asked)
        assert before > TARS
        assert load(f"{address}/{{0000..0005}}.tar?stream=true&namespace=n").samples == source.samples
    assert len(asked) == before


@pytest.mark.parametrize("loader", ["threads", "process"])
def test_every_sample_comes_once_per_epoch_and_any_step_can_be_resumed(shards, little, loader):
    made = stream([pipe(shards)], loader=loader)
    batches = list(made.batches(0, stop=12))
    first, second = ([id for batch in part for id in batch.ids] for part in (batches[:6], batches[6:]))
    assert sorted(first) == sorted(second) == sorted({*first})
    assert len(first) == TARS * EACH
    assert first != second
    resumed = next(stream([pipe(shards)]).batches(8, stop=9))
    assert resumed.ids == batches[8].ids
    assert torch.equal(resumed.images, batches[8].images)
    assert torch.equal(resumed.tokens, batches[8].tokens)
    helped()
    assert kept() <= little


def test_pixels_and_texts_are_those_of_the_tars_on_the_disk(shards):
    own, local = (dict(rows) for rows in (shown([pipe(shards)]), shown([str(shards)])))
    assert own.keys() == local.keys()
    assert all(torch.equal(own[id], local[id]) for id in own)


def shown(data):
    made = stream(data, augment=None)
    return [
        (id.partition("/")[2], image)
        for b in made.batches(0, stop=6)
        for id, image in zip(b.ids, b.images, strict=True)
    ]


def test_the_parts_of_two_ranks_are_the_batch_of_one(shards):
    whole = stream([pipe(shards)], batch=7).batch(3)
    parts = [stream([pipe(shards)], batch=7, place=Place(rank=r, ranks=2)).batch(3) for r in range(2)]
    assert sum((part.ids for part in parts), ()) == whole.ids
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_few_tars_are_in_use_at_a_time_and_all_are_announced(shards):
    made = stream([pipe(shards, "stream=4")])
    tars = [made.samples[made.mixture.draw(p)].image.tar for p in range(TARS * EACH)]
    for position in range(0, TARS * EACH, 8):
        # In use at any time are those whose samples come within the reach: a few, and all are announced.
        assert len(set(tars[position : position + 8])) <= 4
        assert set(tars[position : position + 8]) <= set(made.mixture.coming(position))


def test_what_is_expected_is_fetched_ahead_as_far_as_there_is_room(shards, little):
    folder = cache_folder() / "streamed"
    tars = [remote(folder / "x", shards / f"000{k}.tar") for k in range(TARS)]
    folder.mkdir(parents=True)
    shelf = Shelf(folder, patience=QUICK)
    shelf.expect(tuple(tars[1:4]))
    helped()
    assert [tar.path.is_file() for tar in tars] == [False, True, True, False, False, False]
    image, content = member(tars[5], shards / "0005.tar")
    assert shelf.read(image) == content
    # One that is needed now takes the place of the one that is needed last.
    assert [tar.path.is_file() for tar in tars] == [False, True, False, False, False, True]
    shelf.expect(tuple(tars[1:3]))
    helped()
    assert [tar.path.is_file() for tar in tars] == [False, True, True, False, False, False]
    assert kept() <= little


def test_many_threads_with_room_for_one_tar_read_what_they_asked_for(shards, monkeypatch):
    size = (shards / "0000.tar").stat().st_size
    monkeypatch.setenv("UNICL_CACHE_GB", str(1.5 * size / 1e9))
    folder = cache_folder() / "streamed"
    images = [member(remote(folder / "x", path), path) for path in sorted(shards.glob("*.tar"))]
    asked = random.Random(1).choices(images, k=30)
    shelf = Shelf(folder, patience=QUICK)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: shelf.read(pair[0]), asked))
    assert found == [content for _, content in asked]
    assert kept() <= 1.5 * size


def test_a_connection_that_is_cut_goes_on_where_it_ended(shards):
    folder = cache_folder() / "streamed"
    with served(shards, faults=[3000, 503]) as (address, asked):
        tar = remote(folder / "x", shards / "0000.tar", address=f"{address}/0000.tar")
        image, content = member(tar, shards / "0000.tar")
        assert Shelf(folder, patience=QUICK).read(image) == content
    assert [part for _, part, _ in asked] == [None, "bytes=3000-", "bytes=3000-"]


def test_a_server_that_dies_during_training_is_named(shards):
    with served(shards) as (address, _):
        source = load(f"{address}/{{0000..0005}}.tar?stream=true")
    tar = source.samples[0].image.tar
    tar.path.unlink()
    folder = cache_folder() / "streamed"
    said = r"http://127.0.0.1:\d+/0000.tar cannot be fetched, tried 3 times: .*refused"
    shelf = Shelf(folder, patience=QUICK)
    shelf.expect((tar,))
    helped()
    with pytest.raises(UserError, match=said) as caught:
        shelf.read(source.samples[0].image)
    assert caught.value.code == 1
    assert not tar.path.is_file()


def test_a_tar_that_changed_is_named(shards, tmp_path):
    copy = tmp_path / "0000.tar"
    copy.write_bytes((shards / "0000.tar").read_bytes())
    image = load(f"pipe:cat {copy}?stream=true").samples[0].image
    image.tar.path.unlink()
    with copy.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(
        UserError, match=r"0000.tar has changed, it has [\d,]+ bytes instead of [\d,]+; to read it anew"
    ):
        read_bytes(image)


def test_a_tar_larger_than_the_room_is_named(shards, monkeypatch):
    monkeypatch.setenv("UNICL_CACHE_GB", "0.000005")
    with pytest.raises(UserError, match=r"0000.tar alone is larger than the 5e-06 GB .* UNICL_CACHE_GB=500"):
        load(f"pipe:cat {shards}/0000.tar?stream=true")
    assert kept() == 0


@pytest.mark.parametrize("fault", ["compressed", "cut off"])
def test_tars_that_cannot_be_read_in_place_are_refused(shards, tmp_path, fault):
    if fault == "compressed":
        with tarfile.open(shards / "0000.tar") as old, tarfile.open(tmp_path / "a.tar", "w:gz") as new:
            for info in old:
                new.addfile(info, old.extractfile(info))
    else:
        (tmp_path / "a.tar").write_bytes((shards / "0000.tar").read_bytes()[:9000])
    with pytest.raises(UserError, match=r"a.tar is compressed or cut off, and cannot be streamed"):
        load(f"pipe:cat {tmp_path}/a.tar?stream=true")


def test_remains_of_a_process_that_was_killed_make_room(shards, little):
    folder = cache_folder() / "streamed"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "9.tar.part").write_bytes(bytes(int(little)))
    image, content = member(remote(folder / "x", shards / "0000.tar"), shards / "0000.tar")
    assert Shelf(folder, patience=QUICK).read(image) == content
    assert not (folder / "x" / "9.tar.part").exists()


def test_streamed_and_local_sources_mix(shards):
    made = stream([pipe(shards), f"{shards}/0000.tar?weight=2"])
    counts = Counter(id.partition("/")[0] for batch in made.batches(0, stop=8) for id in batch.ids)
    assert counts == {Path(pipe(shards).partition("?")[0]).name: 48, "0000.tar": 16}


def test_a_damaged_index_is_named(shards):
    tar = load(f"pipe:cat {shards}/0000.tar?stream=true").samples[0].image.tar.path
    index = tar.with_name("0000.tar.index")
    index.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"the index of 0000.tar in .* is damaged; remove it, it is made anew"):
        load(f"pipe:cat {shards}/0000.tar?stream=true")
    index.unlink()
    assert len(load(f"pipe:cat {shards}/0000.tar?stream=true").samples) == EACH
