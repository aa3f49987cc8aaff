import base64

import pyarrow as pa
import pytest
from pyarrow import parquet

from pictures import picture
from unicl.data.sources import load, read_bytes
from unicl.errors import UserError
from unicl.space import Slice


def write(path, /, **columns):
    parquet.write_table(pa.table(columns), path)
    return str(path)


def pictures(count):
    return [picture(seed) for seed in range(count)]


def test_images_as_bytes_paths_base64_and_structs_are_the_same(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "1.png").write_bytes(picture(1))
    columns = {
        "bytes": pictures(2),
        "path": ["0.png", "1.png"],
        "base64": [base64.b64encode(content).decode() for content in pictures(2)],
        "image": [{"bytes": content, "path": "elsewhere.png"} for content in pictures(2)],
    }
    for name, values in columns.items():
        source = load(write(tmp_path / f"{name}.parquet", **{name: values, "text": ["red", None], "label": [0, 1]}))
        assert source.format == "parquet"
        assert source.guessed == {"image": name, "text": "text", "label": "label"}
        assert [read_bytes(sample.image) for sample in source.samples] == pictures(2)
        assert [(sample.captions, sample.labels) for sample in source.samples] == [(("red",), ("0",)), ((), ("1",))]
        assert [sample.id for sample in source.samples] == (
            ["0.png", "1.png"] if name == "path" else ["row 0", "row 1"]
        )


def test_lists_and_gaps_in_numbers_are_read(tmp_path):
    labels = pa.array([1.0, float("nan"), None], pa.float64())
    source = load(write(tmp_path / "t.parquet", caption=[["one", "two"], [], None], label=labels))
    assert [(sample.captions, sample.labels) for sample in source.samples] == [(("one", "two"), ("1",))]
    assert source.notes == ("empty rows left out: 2 (first: row 1)",)


def test_a_folder_of_files_is_one_source_with_rows_apart(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.parquet", text=[f"text {number}"])
    source = load(str(tmp_path))
    assert [sample.id for sample in source.samples] == ["0.parquet:row 0", "1.parquet:row 0"]
    assert [sample.captions for sample in source.samples] == [("text 0",), ("text 1",)]


def test_the_layout_of_the_hub_asks_for_one_part(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.parquet", text=["a"])
    assert len(load(str(tmp_path)).samples) == 1
    write(tmp_path / "data" / "test-00000-of-00001.parquet", text=["b"])
    with pytest.raises(UserError, match=r"holds the parts test and train; give one of them: '.*data/test-\*.parquet'"):
        load(str(tmp_path))
    assert len(load(f"{tmp_path}/data/train-*.parquet").samples) == 1


def test_many_rows_come_in_order(tmp_path):
    source = load(write(tmp_path / "t.parquet", text=[str(number) for number in range(2500)]))
    assert [sample.captions[0] for sample in source.samples] == [str(number) for number in range(2500)]
    assert source.samples[-1].id == "row 2499"


def test_a_file_that_is_cut_off_or_of_another_kind_says_so(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, text=["a"] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"t.parquet cannot be read, it is cut off or of another format"):
        load(str(path))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"t.parquet cannot be read"):
        load(str(path))


def test_a_file_without_rows_says_so(tmp_path):
    with pytest.raises(UserError, match="t.parquet holds no rows"):
        load(write(tmp_path / "t.parquet", text=pa.array([], pa.string())))


def saved(folder, count=3, shards=2):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": names,
            "tags": datasets.Sequence(names),
            "caption": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": content, "path": None} for content in pictures(count)],
        "label": [number % 2 for number in range(count - 1)] + [-1],
        "tags": [[0, 1]] * count,
        "caption": [f"picture {number}" for number in range(count)],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(folder, num_shards=shards)
    return data


def test_a_saved_data_set_is_read_in_place_with_its_class_names(tmp_path):
    saved(tmp_path / "set")
    source = load(str(tmp_path / "set"))
    assert source.format == "hf dataset"
    assert [sample.id for sample in source.samples] == ["row 0", "row 1", "row 2"]
    assert [sample.labels for sample in source.samples] == [("cat",), ("dog",), ()]
    assert [sample.captions for sample in source.samples] == [("picture 0",), ("picture 1",), ("picture 2",)]
    assert all(isinstance(sample.image, Slice) for sample in source.samples)
    assert [read_bytes(sample.image) for sample in source.samples] == pictures(3)
    assert load(f"{tmp_path}/set?label=tags").samples[0].labels == ("cat", "dog")


def test_a_saved_data_set_may_name_files_instead_of_holding_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture())
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "set" / "a.png"), None]}, features=features)
    table = data.data.table
    (tmp_path / "set" / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}', encoding="utf-8")
    with pa.OSFile(str(tmp_path / "set" / "d.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    source = load(str(tmp_path / "set"))
    assert [(sample.id, sample.image) for sample in source.samples] == [("a.png", tmp_path / "set" / "a.png")]


def test_the_class_names_of_a_hub_parquet_file_are_read(tmp_path):
    saved(tmp_path / "set").to_parquet(tmp_path / "t.parquet")
    assert [sample.labels for sample in load(str(tmp_path / "t.parquet")).samples] == [("cat",), ("dog",), ()]


def test_a_saved_data_set_with_splits_asks_for_one(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "one")
    assert len(load(str(tmp_path / "one")).samples) == 1
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match="give one of them: two/train, two/test"):
        load(str(tmp_path / "two"))
    assert load(f"{tmp_path}/two/test").samples[0].captions == ("a",)


def test_a_broken_saved_data_set_says_what_is_wrong(tmp_path):
    state = tmp_path / "state.json"
    for content, message in (
        ('{"_data_files": []}', "names no data files"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "wanted are names without a folder"),
        ('{"_data_files": [{"filename": "x.arrow"}]}', "x.arrow cannot be read"),
        ('{"_indices_files": [{"filename": "i.arrow"}]}', "saved with an index apart"),
        ("{", "state.json cannot be read"),
    ):
        state.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load(str(tmp_path))
