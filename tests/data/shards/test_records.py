import io
import json
import tarfile

import pytest

from pictures import picture
from unicl.data.shards.records import MANIFEST, record, unfinished
from unicl.data.sources import load
from unicl.errors import UserError
from unicl.space import Finding, Sample

APPLE = Sample(
    id="红/苹果.jpg", captions=("一个红苹果", "two\nlines", " a|b; c "), labels=("苹果", "fruit|red"), namespace="水果"
)
BARE = Sample(id="a.jpg", namespace="")
ODD = Sample(
    id=b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), captions=("nan",), labels=("0", "nan"), namespace="x"
)


def pack(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def shard(path, *samples):
    pairs = [((f"{k}.png", picture(k)), (f"{k}.json", record(s))) for k, s in enumerate(samples)]
    return pack(path, *(member for pair in pairs for member in pair))


def plain(sample):
    return sample.id, sample.captions, sample.labels, sample.namespace


def test_a_record_gives_back_the_sample_whatever_its_texts(tmp_path):
    source = load(shard(tmp_path / "t.tar", APPLE, BARE, ODD))
    assert [plain(sample) for sample in source.samples] == [plain(sample) for sample in (APPLE, BARE, ODD)]
    assert source.guessed == {"image": "image members", "text": "captions", "label": "labels"}


def test_a_record_keeps_the_patient(tmp_path):
    path = shard(tmp_path / "t.tar", Sample(id="a", patient="p7"), Sample(id="b"))
    assert [sample.patient for sample in load(path).samples] == ["p7", ""]
    assert [sample.patient for sample in load(f"{path}?patient=").samples] == ["", ""]


def test_chinese_is_written_readably_and_the_size_stands_beside_it():
    content = record(APPLE, width=341, height=256)
    assert "一个红苹果".encode() in content
    fields = json.loads(content)
    assert (fields["width"], fields["height"]) == (341, 256)
    assert fields["captions"] == list(APPLE.captions)


def test_namespace_and_names_of_the_source_win(tmp_path):
    path = shard(tmp_path / "t.tar", Sample(id="a", labels=("0", "1"), namespace="x"))
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
    (sample,) = load(f"{path}?namespace=y&names=names.txt").samples
    assert (sample.labels, sample.namespace) == (("cat", "dog"), "y")
    (sample,) = load(f"{path}?namespace=").samples
    assert sample.namespace == ""
    with pytest.raises(UserError, match="label '1' is not in the class list"):
        load(path, names={"0": "cat"})


def test_a_source_that_names_columns_reads_records_as_any_json(tmp_path):
    path = shard(tmp_path / "t.tar", APPLE)
    (sample,) = load(f"{path}?text=id&label=namespace").samples
    assert (sample.id, sample.captions, sample.labels) == ("t.tar/0", ("红/苹果.jpg",), ("水果",))


def test_an_id_that_comes_twice_stays_two_samples(tmp_path):
    shard(tmp_path / "a.tar", APPLE)
    shard(tmp_path / "b.tar", APPLE)
    assert [sample.id for sample in load(str(tmp_path)).samples] == ["红/苹果.jpg", "b.tar/0"]


def test_records_and_other_members_may_stand_in_one_source(tmp_path):
    shard(tmp_path / "a.tar", APPLE)
    pack(tmp_path / "b.tar", ("k.png", picture()), ("k.txt", b"plain"))
    found = load(str(tmp_path)).samples
    assert [(sample.id, sample.captions) for sample in found] == [
        ("红/苹果.jpg", APPLE.captions),
        ("b.tar/k", ("plain",)),
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"id": 7}, r"'id' is no text"),
        ({"captions": "one"}, r"'captions' is no list of texts"),
        ({"labels": [0]}, r"'labels' is no list of texts"),
        ({"namespace": None}, r"'namespace' is no text"),
    ],
)
def test_a_record_of_the_wrong_kind_is_named(tmp_path, changed, said):
    content = json.dumps({**json.loads(record(APPLE)), **changed}).encode()
    with pytest.raises(UserError, match=rf"t.tar/0.json begins as a record of unicl shard, but its {said}"):
        load(pack(tmp_path / "t.tar", ("0.png", picture()), ("0.json", content)))


def test_a_record_that_is_cut_off_is_no_json(tmp_path):
    with pytest.raises(UserError, match=r"t.tar/0.json is not JSON"):
        load(pack(tmp_path / "t.tar", ("0.png", picture()), ("0.json", record(APPLE)[:-4])))


def test_a_folder_of_unfinished_shards_says_so(tmp_path):
    shard(tmp_path / "0000.tar", APPLE)
    assert unfinished(tmp_path) is None
    manifest = {"finished": False, "total": 1200, "shards": [{}]}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    (note,) = load(str(tmp_path)).notes
    assert "is not finished: its 1 shards hold a part of the 1,200 samples" in note
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "finished": True}), encoding="utf-8")
    assert load(str(tmp_path)).notes == ()
    for content in ("", "[]", "{}", '{"finished": 0}'):
        (tmp_path / MANIFEST).write_text(content, encoding="utf-8")
        assert unfinished(tmp_path) is None


def test_findings_come_back_and_equal_ones_are_one_object(tmp_path):
    findings = (("Edema", Finding.PRESENT), ("Mass", Finding.UNCERTAIN), ("Scar", Finding.UNMENTIONED))
    samples = [Sample(id=str(k), captions=("a",), findings=findings) for k in range(2)]
    first, second = load(shard(tmp_path / "t.tar", *samples)).samples
    assert first.findings == findings
    assert first.findings is second.findings
    assert b"findings" not in record(Sample(id="a", captions=("a",)))
