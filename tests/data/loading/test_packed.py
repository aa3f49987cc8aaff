import dataclasses
import pickle
from pathlib import Path

import pytest

from unicl.data.loading.packed import Packed
from unicl.space import RemoteTar, Sample, Slice, Streamed

SAMPLES = (
    Sample(id="a", image=Path("/data/a.jpg"), captions=("one", "two"), labels=("0", "x"), namespace="n", patient="p"),
    Sample(id="b", image=Slice(Path("/data/s.tar"), 2**40, 17)),
    Sample(id="c", image=b"\xff\xd8", captions=("b",)),
    Sample(id="d", labels=("only",), namespace="m"),
    Sample(id="e", image=Slice(Path("/data/s.tar"), 0, 5)),
    Sample(id="f", image=Streamed(RemoteTar("https://x/s.tar", Path("/data/s.tar"), 99), 2**40, 7)),
)


def test_columns_give_back_the_samples_also_after_a_pickle():
    for packed in (Packed(SAMPLES), pickle.loads(pickle.dumps(Packed(SAMPLES)))):
        assert tuple(packed) == SAMPLES
        assert len(packed) == 6
        assert packed[-1] == SAMPLES[-1]
        assert list(packed[1:4]) == list(SAMPLES[1:4])
        with pytest.raises(IndexError):
            packed[6]


def test_every_field_of_a_sample_is_carried():
    carried = {"id", "image", "captions", "labels", "namespace", "findings", "others", "patient"}
    assert {field.name for field in dataclasses.fields(Sample)} == carried


def test_the_path_of_an_archive_is_written_once():
    members = [Sample(id=str(k), image=Slice(Path("/a/long/path/to/an/archive.tar"), k, 1)) for k in range(500)]
    assert pickle.dumps(Packed(members)).count(b"archive.tar") == 1


def test_no_samples_are_no_samples():
    assert list(Packed(())) == []


def test_the_other_images_of_a_study_are_carried():
    several = (
        SAMPLES[0],
        dataclasses.replace(SAMPLES[0], id="x", others=(Path("/data/b.jpg"), b"jpg", Slice(Path("/s.tar"), 3, 4))),
        SAMPLES[1],
        dataclasses.replace(SAMPLES[2], id="y", others=(Path("/data/c.jpg"),)),
    )
    for packed in (Packed(several), pickle.loads(pickle.dumps(Packed(several)))):
        assert tuple(packed) == several
        assert packed[-1] == several[-1]
        assert packed[-3].others == several[1].others
