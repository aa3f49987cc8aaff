import io
import shlex
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from pictures import picture
from unicl.data.sources import load, load_all, read_bytes
from unicl.data.tars.offsets import cache_folder
from unicl.data.tars.remote import Patience, fetch_all
from unicl.errors import UserError
from web import served

QUICK = Patience(delays=(0.0, 0.0), stall=20.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path):
    """Two tars of five pictures with captions each."""
    (tmp_path / "shards").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "shards" / f"000{number}.tar", "w") as tar:
            for k in range(5):
                for ending, content in (("png", picture(10 * number + k)), ("txt", f"图 {number} {k}".encode())):
                    info = tarfile.TarInfo(f"{k:05}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return tmp_path / "shards"


def test_tars_of_an_address_are_the_same_samples_as_on_the_disk(shards):
    with served(shards) as (address, asked):
        source = load(f"{address}/{{0000..0001}}.tar?namespace=n")
        again = load(f"{address}/{{0000..0001}}.tar?namespace=n")
    here = load(f"{shards}?namespace=n")
    assert [(s.id, s.captions, s.namespace) for s in source.samples] == [
        (s.id, s.captions, s.namespace) for s in here.samples
    ]
    assert [read_bytes(s.image) for s in source.samples] == [read_bytes(s.image) for s in here.samples]
    assert again.samples == source.samples
    assert sorted(path for path, _, _ in asked) == ["/0000.tar", "/0001.tar"]


def test_tars_that_a_command_prints_are_read(shards, tmp_path):
    command = f"pipe:echo x >> {tmp_path}/ran; cat {shlex.quote(str(shards))}/{{0000..0001}}.tar"
    for _ in range(2):
        assert [s.captions for s in load(command).samples] == [s.captions for s in load(str(shards)).samples]
    assert (tmp_path / "ran").read_text() == "x\nx\n"


def test_a_command_in_another_folder_is_another_source(shards, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "t.tar").write_bytes((shards / "0001.tar").read_bytes())
    (tmp_path / "t.tar").write_bytes((shards / "0000.tar").read_bytes())
    found = []
    for folder in (tmp_path, tmp_path / "a"):
        monkeypatch.chdir(folder)
        found.append(load("pipe:cat t.tar").samples[0].captions)
    assert found == [("图 0 0",), ("图 1 0",)]


def test_addresses_mix_with_data_on_the_disk(shards):
    with served(shards) as (address, _):
        sources = load_all([f"{address}/0000.tar", f"{shards}/0000.tar", f"pipe:cat {shards}/0001.tar"])
    assert [(source.name, len(source.samples)) for source in sources] == [
        ("0000.tar", 5),
        ("0000.tar#2", 5),
        ("0001.tar", 5),
    ]


def test_an_answer_that_breaks_off_goes_on_where_it_ended(shards):
    with served(shards, faults=[3000, 1000]) as (address, asked):
        (path,) = fetch_all([f"{address}/0000.tar"], name="s", patience=QUICK)
    assert path.read_bytes() == (shards / "0000.tar").read_bytes()
    assert asked == [
        ("/0000.tar", None, None),
        ("/0000.tar", "bytes=3000-", '"one"'),
        ("/0000.tar", "bytes=4000-", '"one"'),
    ]


def test_a_server_that_is_busy_is_asked_again(shards):
    with served(shards, faults=[503, 503]) as (address, asked):
        (path,) = fetch_all([f"{address}/0000.tar"], name="s", patience=QUICK)
    assert len(asked) == 3
    assert path.read_bytes() == (shards / "0000.tar").read_bytes()


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ([404], r"/0000.tar cannot be fetched: 404 Not Found"),
        ([503] * 3, r"/0000.tar cannot be fetched, tried 3 times: 503 Service Unavailable"),
        ([10, 10, 10], r"/0000.tar cannot be fetched, tried 3 times: it ended after 10 of"),
        (["stall"] * 3, r"/0000.tar cannot be fetched, tried 3 times: nothing came for 0.2 s"),
    ],
)
def test_an_address_that_keeps_failing_is_named(shards, faults, said):
    patience = Patience(delays=(0.0, 0.0), stall=0.2 if "stall" in faults else 20.0)
    with served(shards, faults=faults) as (address, _), pytest.raises(UserError, match=said) as caught:
        fetch_all([f"{address}/0000.tar"], name="s", patience=patience)
    assert caught.value.code == 1
    assert not [p for p in cache_folder().rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_a_server_that_is_not_there_is_named():
    with served(cache_folder()) as (address, _):
        pass
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+/0000.tar cannot be fetched, tried 3 times: .*refused"):
        fetch_all([f"{address}/0000.tar"], name="s", patience=QUICK)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo half; echo no such bucket >&2; exit 3", "the command ended with status 3: no such bucket"),
        ("true", "the command printed nothing"),
        ("nocommand_x", "the command ended with status 127: .*not found"),
        ("printf x; sleep 100", "nothing came for 0.2 s"),
    ],
)
def test_a_command_that_keeps_failing_is_named(command, said):
    patience = Patience(delays=(0.0,), stall=0.2 if "sleep" in command else 20.0)
    with pytest.raises(UserError, match=rf"pipe:.* cannot be fetched, tried 2 times: {said}"):
        fetch_all([f"pipe:{command}"], name="s", patience=patience)


def test_a_command_that_fails_once_is_run_again(shards, tmp_path):
    command = f"pipe:if [ -e {tmp_path}/mark ]; then cat {shards}/0000.tar; else touch {tmp_path}/mark; exit 1; fi"
    (path,) = fetch_all([command], name="s", patience=QUICK)
    assert path.read_bytes() == (shards / "0000.tar").read_bytes()


def test_what_was_fetched_is_bounded(shards, monkeypatch):
    monkeypatch.setenv("UNICL_CACHE_GB", "0.000015")
    with pytest.raises(UserError, match=r"fill the 1.5e-05 GB they may take; remove those .* UNICL_CACHE_GB=500"):
        fetch_all([f"pipe:cat {shards}/000{k}.tar" for k in range(2)], name="s", patience=QUICK)
    monkeypatch.setenv("UNICL_CACHE_GB", "many")
    with pytest.raises(UserError, match="UNICL_CACHE_GB='many' is not a number"):
        fetch_all([f"pipe:cat {shards}/0000.tar"], name="s", patience=QUICK)


def test_many_that_ask_at_once_fetch_once(shards):
    with served(shards) as (address, asked), ThreadPoolExecutor(6) as pool:
        sources = list(pool.map(lambda _: load(f"{address}/{{0000..0001}}.tar"), range(6)))
    assert all(source.samples == sources[0].samples for source in sources)
    assert Counter(path for path, _, _ in asked) == {"/0000.tar": 1, "/0001.tar": 1}


def test_files_of_one_name_stay_apart(shards):
    commands = [f"pipe:cat {shards}/0000.tar", f"pipe:cat {shards}/../shards/0000.tar"]
    assert [path.name for path in fetch_all(commands, name="s", patience=QUICK)] == ["0000.tar", "2-0000.tar"]


def test_what_is_no_tar_is_said_and_not_kept(shards):
    (shards / "page.tar").write_text("<html>please sign in</html>")
    with (
        served(shards) as (address, _),
        pytest.raises(UserError, match=r"/page.tar gives is no tar, it begins with b'<html>please sign in"),
    ):
        load(f"{address}/page.tar")
    assert not list(cache_folder().rglob("page.tar"))
