"""Images per second and core from the same tar with the same crop: our stream against open_clip's pipeline."""

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from unicl.data.collate import class_texts
from unicl.data.image import Augment, _random_box, augment, decode
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Stream, StreamSettings
from unicl.data.text import load_tokenizer

SIDE = 224
BATCH = 64
CASES = (("500x375 q85", 500, 375, 85), ("256x256 q95", 256, 256, 95))
WANTED = 2.1
Sides = dict[str, Callable[[], Iterator[Any]]]


def photographs(count: int, *, width: int, height: int, quality: int) -> list[bytes]:
    """JPEGs of random parts of two photographs: what a camera saw, with its edges and its noise."""
    rng = np.random.default_rng(0)
    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    files = []
    for k in range(count):
        picture = whole[k % 2]
        tall = int(min(picture.height, picture.width * height / width) * rng.uniform(0.6, 1))
        wide = int(tall * width / height)
        left, top = rng.integers(picture.width - wide + 1), rng.integers(picture.height - tall + 1)
        part = picture.crop((left, top, left + wide, top + tall)).resize((width, height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        part.save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return files


def write_tar(path: Path, files: list[bytes]) -> None:
    """A WebDataset shard: an image and a caption for each sample."""
    with tarfile.open(path, "w") as tar:
        for k, content in enumerate(files):
            for extension, data in (("jpg", content), ("txt", f"photograph number {k} of a place".encode())):
                member = tarfile.TarInfo(f"{k:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


class TarPairs(IterableDataset):  # type: ignore[type-arg]
    """The pairs of a tar over and over, each worker its share: what open_clip's shards give, read by tarfile."""

    def __init__(self, path: Path, *, transform: Callable[[Image.Image], Tensor], tokenize: Any) -> None:
        self.path, self.transform, self.tokenize = path, transform, tokenize

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            yield from itertools.islice(self.once(), first, None, step)

    def once(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass, lazily: a sample that another worker takes is not decoded."""
        with tarfile.open(self.path) as tar:
            members = iter(tar)
            for image, text in zip(members, members, strict=True):
                yield self.decoded(tar.extractfile(image).read(), tar.extractfile(text).read())  # type: ignore[union-attr]

    def decoded(self, image: bytes, text: bytes) -> tuple[Tensor, Tensor]:
        """As webdataset's decode("pilrgb") and open_clip's map."""
        with io.BytesIO(image) as stream:
            picture = Image.open(stream)
            picture.load()
            return self.transform(picture.convert("RGB")), self.tokenize(text.decode())[0]


def theirs(path: Path, *, workers: int) -> Iterator[Any]:
    """Batches as ``open_clip_train.data`` makes them: float32, normalised."""
    transform = open_clip.image_transform(SIDE, is_train=True, aug_cfg={"scale": (0.9, 1.0)})
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    if find_spec("webdataset"):
        import webdataset as wds

        stages = (
            wds.ResampledShards([str(path)]),
            wds.tarfile_to_samples(),
            wds.decode("pilrgb"),
            wds.rename(image="jpg;png;jpeg;webp", text="txt"),
            wds.map_dict(image=transform, text=partial(first, tokenize=tokenize)),
            wds.to_tuple("image", "text"),
            wds.batched(BATCH, partial=False),
        )
        data: Any = wds.DataPipeline(*stages)
        return iter(wds.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0))
    data = TarPairs(path, transform=transform, tokenize=tokenize)
    return iter(DataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True))


def first(text: str, *, tokenize: Any) -> Tensor:
    """The tokens of one text."""
    tokens: Tensor = tokenize(text)[0]
    return tokens


def stream(path: Path, *, workers: int = 1, loader: str = "threads") -> Stream:
    """Our stream of uint8 batches, with tokens; normalised on the device."""
    settings = StreamSettings(batch=BATCH, keys="sample", workers=workers, loader=loader)  # type: ignore[arg-type]
    return Stream(
        load_all([str(path)]),
        settings,
        texts=class_texts("en"),
        tokenizer=load_tokenizer("clip", context=77),
        size=SIDE,
        seed=0,
        quarantine=Quarantine(limit=0),
    )


def alone(path: Path) -> Iterator[Any]:
    """Our batches made one after the other by the only thread there is."""
    made = stream(path)
    return (made.batch(step) for step in itertools.count())


def ahead(path: Path, *, workers: int, loader: str) -> Iterator[Any]:
    """Our batches as training reads them."""
    return stream(path, workers=workers, loader=loader).batches(0, stop=10**9)


def rate(make: Callable[[], Iterator[Any]], *, batches: int) -> tuple[float, float]:
    """Images a second of a pipeline that has just been made, on the clock and of this process on the processor."""
    pipeline = make()
    for _ in range(4):  # workers start, and what they made meanwhile is used up
        next(pipeline)
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(pipeline)
    took = time.perf_counter() - clock, time.process_time() - processor
    del pipeline
    return BATCH * batches / took[0], BATCH * batches / took[1]


def by_turns(sides: Sides, *, turns: int, batches: int) -> tuple[dict[str, float], dict[str, float]]:
    """The median rates of each side; they take turns, so that a busy moment of the machine falls on all."""
    found = [{name: rate(make, batches=batches) for name, make in sides.items()} for _ in range(turns)]
    clock, processor = ({name: statistics.median(each[name][k] for each in found) for name in sides} for k in (0, 1))
    return clock, processor


def differences(files: list[bytes]) -> dict[str, float]:
    """Grey levels between our crops and Pillow's of the same boxes, decoded by Pillow."""
    settings, counts = Augment(), np.zeros(256, dtype=np.int64)
    for k, content in enumerate(files):
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        top, left, height, width = _random_box(
            picture.height, picture.width, share=settings.crop, rng=np.random.default_rng(k)
        )
        box = (left, top, left + width, top + height)
        wanted = np.asarray(picture.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int64)
        view = augment(decode(content), settings, size=SIDE, rng=np.random.default_rng(k)).permute(1, 2, 0).numpy()
        counts += np.bincount(np.abs(view - wanted).ravel(), minlength=256)
    total = counts.sum()
    return {
        "largest": int(counts.nonzero()[0].max()),
        "share of values equal": float(counts[0] / total),
        "share of values more than one level off": float(counts[2:].sum() / total),
    }


def run(path: Path, files: list[bytes], *, turns: int, batches: int) -> dict[str, Any]:
    """All numbers of one kind of file."""
    write_tar(path, files)
    one, processor = by_turns(
        {
            "ours": partial(alone, path),
            "ours, one thread ahead": partial(ahead, path, workers=1, loader="threads"),
            "ours, process with one thread": partial(ahead, path, workers=1, loader="process"),
            "open_clip": partial(theirs, path, workers=0),
        },
        turns=turns,
        batches=batches,
    )
    two, _ = by_turns(
        {
            "ours, two threads": partial(ahead, path, workers=2, loader="threads"),
            "ours, process with two threads": partial(ahead, path, workers=2, loader="process"),
            "open_clip, two workers": partial(theirs, path, workers=2),
        },
        turns=turns,
        batches=batches,
    )
    return {
        "bytes a file": round(statistics.mean(map(len, files))),
        "images/s on one core": {name: round(value, 1) for name, value in one.items()},
        "images a second of the processor": {name: round(processor[name], 1) for name in ("ours", "open_clip")},
        "images/s on two cores": {name: round(value, 1) for name, value in two.items()},
        "ratio on one core": round(one["ours"] / one["open_clip"], 2),
        "ratio of processor time": round(processor["ours"] / processor["open_clip"], 2),
        "ratio on two cores": round(two["ours, process with two threads"] / two["open_clip, two workers"], 2),
        "grey levels to Pillow": differences(files),
    }


def show(results: dict[str, dict[str, Any]], *, out: Console) -> None:
    """The table of the terminal."""
    table = Table("JPEGs", "ours, images/s and core", "open_clip", "ratio", "by processor", "two cores", "off by")
    for name, each in results.items():
        one = each["images/s on one core"]
        row = (f"{one['ours']:.0f}", f"{one['open_clip']:.0f}", f"{each['ratio on one core']:.2f}")
        row = (*row, f"{each['ratio of processor time']:.2f}", f"{each['ratio on two cores']:.2f}")
        table.add_row(name, *row, str(each["grey levels to Pillow"]["largest"]))
    out.print(table)


def claims(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the README shows."""
    return [
        {
            "what": f"reading JPEGs of {name}, images/s on one core",
            "ours": each["images/s on one core"]["ours"],
            "peer": each["images/s on one core"]["open_clip"],
            "peer name": "open_clip",
            "ratio": each["ratio on one core"],
            "wanted": WANTED,
        }
        for name, each in results.items()
    ]


def main() -> None:
    """Measure, print the table and write ``results/input.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "input.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for k, (name, width, height, quality) in enumerate(CASES):
            files = photographs(asked.images, width=width, height=height, quality=quality)
            results[name] = run(Path(folder) / f"{k}.tar", files, turns=asked.turns, batches=asked.batches)
    show(results, out=Console())
    packages = ("unicl", "torch", "pillow", "simplejpeg", "open_clip_torch")
    content = {
        "batch": BATCH,
        "wanted ratio on one core": WANTED,
        "open_clip reads with": "webdataset" if find_spec("webdataset") else "tarfile in a DataLoader",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "cases": results,
        "rows": claims(results),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
