"""Small data sets in Chinese-CLIP's layouts, written as its own scripts write them."""

import base64
import json
import pickle
from pathlib import Path

import lmdb

from pictures import encoded, noise

COLOURS = ("红", "绿", "蓝", "黄", "黑", "白", "紫", "灰")
THINGS = ("苹果", "汽车", "包", "鞋")
TEXT_NAMES = {
    "_texts.jsonl": ("text_id", "text", "image_ids"),
    "_queries.jsonl": ("query_id", "query_text", "item_ids"),
}


def queries(images=16, *, first=100):
    """Two texts an image, of which every second is said of the next image too: (id, text, ids of images)."""
    found = []
    for k in range(images):
        text = f"一个{COLOURS[k % 8]}色的{THINGS[k // 8 % 4]}"
        more = [first + (k + 1) % images] if k % 2 else []
        found += [(2 * k + 1, text, [first + k, *more]), (2 * k + 2, f"第{k}张图片", [first + k])]
    return found


def images_of(count=16, *, first=100):
    """Id to the bytes of a PNG."""
    return {first + k: encoded(noise(32, 32, seed=k)) for k in range(count)}


def write_pair(folder: Path, split="train", *, count=16, images="_imgs.tsv", texts="_texts.jsonl", asked=None):
    """A TSV and a JSONL; gives the TSV."""
    lines = [f"{id}\t{base64.urlsafe_b64encode(content).decode()}\n" for id, content in images_of(count).items()]
    (folder / f"{split}{images}").write_text("".join(lines), encoding="utf-8")
    names = TEXT_NAMES.get(texts, TEXT_NAMES["_texts.jsonl"])
    rows = [dict(zip(names, row, strict=True)) for row in (queries(count) if asked is None else asked)]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{split}{texts}").write_text(content, encoding="utf-8")
    return folder / f"{split}{images}"


def write_lmdb(folder: Path, split="train", *, count=16, asked=None):
    """The two LMDBs of a split as cn_clip's build_lmdb_dataset.py makes them; gives their folder."""
    records = [(image, id, text) for id, text, ids in (queries(count) if asked is None else asked) for image in ids]
    pairs = {str(k): pickle.dumps(record) for k, record in enumerate(records)} | {"num_samples": str(len(records))}
    contents = {str(id): base64.b64encode(content) for id, content in images_of(count).items()}
    write_entries(folder / split / "pairs", pairs)
    write_entries(folder / split / "imgs", contents | {"num_images": str(count)})
    return folder / split


def write_entries(folder: Path, entries):
    """An LMDB of these keys and values, in several transactions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in entries.items()]
    with lmdb.open(str(folder), map_size=1 << 28) as database:
        for start in range(0, len(rows), 500):
            with database.begin(write=True) as change:
                for key, value in rows[start : start + 500]:
                    change.put(key, value)
    return folder
