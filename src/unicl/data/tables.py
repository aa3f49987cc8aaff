"""Tables of rows on disk: CSV and TSV, JSON lines, parquet."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from unicl.data.columns import listed
from unicl.data.encodings import open_text
from unicl.data.rows import NO_NAMES, Reading, Table, parse_object, table_samples
from unicl.errors import UserError
from unicl.space import Sample

HEAD_CHARACTERS = 1 << 18
HEAD_ROWS = 1000
LONGEST_FIELD = 2**31 - 1
BATCH_ROWS = 1024


def csv_samples(reading: Reading) -> Iterator[Sample]:
    """CSV and TSV with a header row; the separator is found from the first rows."""
    yield from table_samples(_tables(reading, read=csv_table), reading)


def jsonl_samples(reading: Reading) -> Iterator[Sample]:
    """One JSON object a line; also a JSON file that is a list of objects, or COCO's captions or labels."""
    yield from table_samples(_tables(reading, read=json_table), reading)


def parquet_samples(reading: Reading) -> Iterator[Sample]:
    """Parquet files, and folders of them; images as paths, bytes, base64 or Hugging Face's bytes and path."""
    yield from table_samples(_tables(reading, read=parquet_table), reading)
