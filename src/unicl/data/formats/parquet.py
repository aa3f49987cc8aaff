"""Columns on disk: parquet files, and folders that Hugging Face's `datasets` saved."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unicl.data.formats.rows import Reading, Table, table_samples
from unicl.errors import UserError
from unicl.space import Sample, Slice

BATCH_ROWS = 1024
Rows = Iterator[tuple[int, Sequence[object]]]


def parquet_samples(reading: Reading) -> Iterator[Sample]:
    """Parquet files and folders of them; images as paths, bytes, base64 or Hugging Face's bytes and path."""
    files = reading.spec.files(".parquet")
    tables = [_parquet(path, prefix=f"{name}:" if len(files) > 1 else "") for name, path in files.items()]
    yield from table_samples(tables, reading)


def saved_samples(reading: Reading) -> Iterator[Sample]:
    """A folder that ``Dataset.save_to_disk`` wrote, read in place: images stay in the file until they are needed."""
    folders = [_one_split(path) for path in reading.spec.paths]
    tables = [_saved(folder, prefix=f"{folder.name}:" if len(folders) > 1 else "") for folder in folders]
    yield from table_samples(tables, reading)


def _parquet(path: Path, *, prefix: str) -> Table:
    from pyarrow import parquet

    with _arrow_errors(path):
        schema = parquet.read_schema(path)

    def rows(wanted: tuple[str, ...]) -> Rows:
        number = 0
        with _arrow_errors(path), parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(wanted)):
                columns = [batch.column(name).to_pylist() for name in wanted]
                yield from enumerate(zip(*columns, strict=True), start=number)
                number += batch.num_rows

    columns = tuple(schema.names)
    return Table(where=path.name, columns=columns, rows=rows, unit="row", prefix=prefix, classes=_classes(schema))


def _one_split(folder: Path) -> Path:
    index = folder / "dataset_dict.json"
    if not index.is_file():
        return folder
    splits = list(_json(index).get("splits", ()))
    if len(splits) != 1:
        paths = ", ".join(str(folder.name + "/" + split) for split in splits)
        raise UserError(f"{folder.name} holds the splits {splits}; give one of them: {paths}")
    return folder / str(splits[0])


def _saved(folder: Path, *, prefix: str) -> Table:
    state = _json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(f"{folder.name} was saved with an index apart; load and save it again with a newer 'datasets'")
    files = [_member(folder, entry) for entry in state.get("_data_files", ())]
    if not files:
        raise UserError(f"{folder.name}/state.json names no data files; save the data set again with save_to_disk")
    with _arrow_errors(files[0]), _stream(files[0]) as (reader, _, _):
        schema = reader.schema

    def rows(wanted: tuple[str, ...]) -> Rows:
        number = 0
        for file in files:
            for values in _stream_rows(file, wanted):
                yield number, values
                number += 1

    columns = tuple(schema.names)
    return Table(where=folder.name, columns=columns, rows=rows, unit="row", prefix=prefix, classes=_classes(schema))


def _member(folder: Path, entry: Any) -> Path:
    name = str(entry.get("filename", "")) if isinstance(entry, dict) else str(entry)
    if Path(name).name != name:
        raise UserError(f"{folder.name}/state.json names the file {name!r}; wanted are names without a folder")
    return folder / name


def _stream_rows(path: Path, wanted: Sequence[str]) -> Iterator[Sequence[object]]:
    with _arrow_errors(path), _stream(path) as (reader, start, size):
        for batch in reader:
            columns = [_values(batch.column(name), path=path, start=start, size=size) for name in wanted]
            yield from zip(*columns, strict=True)


@contextmanager
def _stream(path: Path) -> Iterator[tuple[Any, int, int]]:
    """The reader of an Arrow stream, and the address and length of its file in memory (mapped, not loaded)."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as mapped:
        content = mapped.read_buffer()
        with pyarrow.ipc.open_stream(content) as reader:
            yield reader, content.address, content.size


def _values(array: Any, *, path: Path, start: int, size: int) -> Sequence[object]:
    import pyarrow

    kind = array.type
    if pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        contents, paths = (array.flatten()[kind.get_field_index(name)] for name in ("bytes", "path"))
        slices = _values(contents, path=path, start=start, size=size)
        return [name if content is None else content for content, name in zip(slices, paths.to_pylist(), strict=True)]
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return _slices(array, path=path, start=start, size=size)
    return list(array.to_pylist())


def _slices(array: Any, *, path: Path, start: int, size: int) -> Sequence[object]:
    """Where in the file each value stands; the values themselves if the file is compressed."""
    _, offsets, values = array.buffers()
    if values is None or not start <= values.address <= start + size - values.size:
        return list(array.to_pylist())
    width = np.int64 if "large" in str(array.type) else np.int32
    bounds = np.frombuffer(offsets, dtype=width)[array.offset : array.offset + len(array) + 1].tolist()
    first, valid = values.address - start, array.is_valid().to_pylist()
    return [
        Slice(path, first + low, high - low) if real else None
        for low, high, real in zip(bounds, bounds[1:], valid, strict=False)
    ]


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """The class names of numbered columns, from what Hugging Face's `datasets` writes into a schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        named = {column: _class_names(feature) for column, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {column: names for column, names in named.items() if names}


def _class_names(feature: Any) -> tuple[str, ...]:
    """Of a ClassLabel, or of a list of them (written as a list, or as an object that holds its feature)."""
    inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
    return tuple(str(name) for name in inner["names"]) if inner.get("_type") == "ClassLabel" else ()


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path.name} cannot be read, it is cut off or of another format: {reason}") from error
