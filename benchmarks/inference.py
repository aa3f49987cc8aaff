"""Images and texts a second on a processor: ours, as model and as exports, beside open_clip and transformers.

One ViT-B/32 with one set of random weights on all sides, read and written by our layouts; all on the same threads, in
turns on the same pictures and captions. Inputs are ready beforehand as each side's own preparation makes them: uint8
pixels for ours and normalised float32 for the others; tokens as long as the batch's longest text for ours and
transformers, 77 for open_clip. Captions are of mixed lengths, 24 tokens on average and 77 at most; pictures are parts
of two photographs, others than those that give int8 its ranges. Random weights have no outliers, so the cosines of
int8 say less than those of a trained model: `unicl export` measures them anew for every model.
"""

import argparse
import json
import logging
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from unicl.model import TwoTowers
from unicl.published import load, model_of, publish
from unicl.use.export.formats import write
from unicl.use.export.openvino import write_openvino
from unicl.use.export.quantise import quantise_dynamic, quantise_static
from unicl.use.export.run import export
from unicl.use.export.runtime import CONFIG, load_export
from unicl.use.export.settings import ExportSettings, Precision, Target

MODEL = "ViT-B-32"
SIDE = 224
WORDS = ("a", "red", "dog", "on", "the", "grass", "old", "house", "near", "water", "with", "two", "birds", "and", "sky")
OPEN_CLIP, TRANSFORMERS = "open_clip eager", "transformers eager"
EXPORTS = ("ONNX fp32", "ONNX int8", "OpenVINO fp32", "OpenVINO int8")
WANTED = {("image", "ONNX int8"): 1.8, ("text", "ONNX int8"): 3.0}
COSINE = 0.99
SAME = 1e-4

Sides = Mapping[str, Callable[[], Tensor]]


def photographs(count: int, *, rng: np.random.Generator) -> Tensor:
    """``(count, 3, SIDE, SIDE)`` uint8: parts of two photographs."""
    whole = load_sample_images().images
    parts = []
    for k in range(count):
        picture = whole[k % 2]
        top, left = (int(rng.integers(length - SIDE + 1)) for length in picture.shape[:2])
        parts.append(torch.from_numpy(picture[top : top + SIDE, left : left + SIDE].copy()).permute(2, 0, 1))
    return torch.stack(parts)


def captions(count: int, *, rng: np.random.Generator) -> tuple[str, ...]:
    """Texts whose lengths are spread as people write captions: most are short, few are long."""
    normal = statistics.NormalDist(mu=3.03, sigma=0.55)
    places = (np.arange(count) + 0.5) / count
    lengths = [min(max(round(math.exp(normal.inv_cdf(place))), 8), 77) for place in places]
    lengths[-1] = 77
    return tuple(" ".join(rng.choice(WORDS, lengths[k] - 2)) for k in rng.permutation(count))


def build(folder: Path) -> tuple[TwoTowers, Any, Any]:
    """The model three times, with the same weights: ours, open_clip's and transformers'."""
    torch.manual_seed(0)
    theirs = open_clip.create_model(MODEL, pretrained_image=False).eval()
    torch.save(theirs.state_dict(), folder / "open_clip.pt")
    ours = load(folder / "open_clip.pt")
    write({"instances": publish(ours)}, folder / "transformers", to="transformers", rebuild=model_of)
    return ours, theirs, CLIPModel.from_pretrained(folder / "transformers").eval()


def exported(model: TwoTowers, folder: Path, *, pixels: Tensor) -> dict[str, TwoTowers]:
    """The model as the exports of `EXPORTS`; all start from one tracing, whose parity `export` has checked."""
    base = folder / "onnx"
    export(model, base, settings=ExportSettings(pictures=8), say=print)
    names = {"image": f"{base}/image.onnx", "text": f"{base}/text.onnx"}
    feeds = [{"pixels": part.numpy()} for part in pixels.split(16)]  # type: ignore[no-untyped-call]
    tokens, mask = model.tokenizer(captions(64, rng=np.random.default_rng(7)))  # type: ignore[misc]
    texts = [{"tokens": a.numpy(), "mask": b.numpy()} for a, b in zip(tokens.split(16), mask.split(16), strict=True)]  # type: ignore[no-untyped-call]
    eight, fixed = folder / "onnx int8", folder / "fixed"
    eight.mkdir(), fixed.mkdir()
    image, text = Path(names["image"]), Path(names["text"])
    quantise_static(image, eight / "image.onnx", feeds=feeds, keep="image_features", convolutions=False)
    quantise_dynamic(text, eight / "text.onnx", keep="text_features")
    quantise_static(text, fixed / "text.onnx", feeds=texts, keep="text_features", convolutions=False)
    sources = {"OpenVINO fp32": (image, text), "OpenVINO int8": (eight / "image.onnx", fixed / "text.onnx")}
    found = {"ONNX fp32": load_export(base), "ONNX int8": _described(base, eight, kind="onnx", dtype="int8")}
    for name, paths in sources.items():
        place = folder / name
        place.mkdir()
        for path in paths:
            write_openvino(path, place / f"{path.stem}.xml", half=False)
        found[name] = _described(base, place, kind="openvino", dtype="int8" if "int8" in name else "fp32")
    return found


def _described(base: Path, folder: Path, *, kind: Target, dtype: Precision) -> TwoTowers:
    """The export of a folder that holds graphs alone, with all else from another one."""
    content = json.loads((base / CONFIG).read_text())
    ends = (".onnx",) if kind == "onnx" else (".xml", ".bin")
    files = {name: [f"{name}{end}" for end in ends] for name in ("image", "text")}
    content["export"] |= {"kind": kind, "dtype": dtype, "files": files}
    (folder / CONFIG).write_text(json.dumps(content))
    for name in ("tokenizer", "objective.safetensors"):
        (folder / name).symlink_to(base / name)
    return load_export(folder)


def sides(
    models: tuple[TwoTowers, Any, Any], exports: Mapping[str, TwoTowers], *, pixels: Tensor, texts: tuple[str, ...]
) -> dict[str, Sides]:
    """What is measured: every side's unit vectors of the same pictures, and of the same texts."""
    ours, theirs, hugging = models
    scaled = (pixels.float() / 255 - ours.image.mean) / ours.image.std
    assert ours.tokenizer is not None
    tokens, mask = ours.tokenizer(texts)
    padded = open_clip.get_tokenizer(MODEL)(list(texts))
    image = {name: lambda m=model: m.image(pixels).whole for name, model in {"ours eager": ours, **exports}.items()}
    text = {name: lambda m=model: m.text(tokens, mask).whole for name, model in {"ours eager": ours, **exports}.items()}
    image[OPEN_CLIP] = lambda: theirs.encode_image(scaled, normalize=True)
    text[OPEN_CLIP] = lambda: theirs.encode_text(padded, normalize=True)
    image[TRANSFORMERS] = lambda: _unit(hugging.get_image_features(pixel_values=scaled))
    text[TRANSFORMERS] = lambda: _unit(hugging.get_text_features(input_ids=tokens, attention_mask=mask.long()))
    return {"image": image, "text": text}


def _unit(found: Any) -> Tensor:
    return F.normalize(found if isinstance(found, Tensor) else found.pooler_output, dim=-1)


@torch.inference_mode()
def measure(each: Sides, *, repeats: int) -> dict[str, dict[str, Any]]:
    """All sides in turns, so that a busy moment of the machine falls on all; the first turn is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in each}
    vectors: dict[str, Tensor] = {}
    for turn in range(repeats + 1):
        for name, run in each.items():
            start = time.perf_counter()
            vectors[name] = run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    exact = vectors["ours eager"].double()
    return {
        name: {
            "a second": len(exact) / statistics.median(seconds[name]),
            "seconds": seconds[name],
            "least cosine": float(F.cosine_similarity(vectors[name].double(), exact).min()),
            "largest difference": float((vectors[name].double() - exact).abs().max()),
        }
        for name in each
    }


def require_same(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Stop if two sides in float32 do not compute the same."""
    for what, sides in results.items():
        far = {name: side["largest difference"] for name, side in sides.items() if "int8" not in name}
        assert max(far.values()) < SAME, f"the {what} towers are not the same: {far}"


def rows(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The lines of the README's table, see ``table.py``: speeds beside open_clip's, cosines beside what is wanted."""
    found = []
    for what, sides in results.items():
        for name in ("ours eager", *EXPORTS, TRANSFORMERS):
            ours, peer = (sides[side]["a second"] for side in (name, OPEN_CLIP))
            found.append(
                {
                    "what": f"ViT-B/32 on a processor, {name}, {what}s/s",
                    "ours": round(ours, 1),
                    "peer": round(peer, 1),
                    "peer name": "open_clip",
                    "ratio": round(ours / peer, 2),
                    "wanted": WANTED.get((what, name)),
                }
            )
        for name in (side for side in EXPORTS if "int8" in side):
            cosine = math.floor(sides[name]["least cosine"] * 1e4) / 1e4
            line = {"what": f"ViT-B/32, {name}, {what}: least cosine to float32", "ratio": cosine, "wanted": COSINE}
            found.append(line)
    return found


def show(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """The table of all sides."""
    table = Table("tower", "side", "a second", "times open_clip", "least cosine", "largest difference")
    for what, sides in results.items():
        for name, side in sides.items():
            ratio = side["a second"] / sides[OPEN_CLIP]["a second"]
            numbers = (f"{side['a second']:.1f}", f"{ratio:.2f}", f"{side['least cosine']:.6f}")
            table.add_row(what, name, *numbers, f"{side['largest difference']:.1e}")
    Console(width=120).print(table)


def setting(*, threads: int) -> dict[str, Any]:
    """On what it was measured."""
    packages = ("unicl", "torch", "timm", "transformers", "open_clip_torch", "onnxruntime", "openvino")
    return {
        "model": "ViT-B/32, random weights",
        "threads": threads,
        "load before": [round(average, 1) for average in os.getloadavg()],
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "int8 dot product": bool(torch.cpu._is_vnni_supported()),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def main() -> None:
    """Measure all sides and write ``results/inference.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "inference.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that its weights are random, which is meant here
    content = setting(threads=asked.threads)
    pixels = photographs(asked.images, rng=np.random.default_rng(0))
    texts = captions(asked.texts, rng=np.random.default_rng(1))
    with tempfile.TemporaryDirectory() as folder:
        models = build(Path(folder))
        exports = exported(models[0], Path(folder), pixels=photographs(32, rng=np.random.default_rng(2)))
        each = sides(models, exports, pixels=pixels, texts=texts)
        results = {what: measure(found, repeats=asked.repeats) for what, found in each.items()}
    require_same(results)
    content |= {"images": asked.images, "texts": asked.texts, "results": results, "rows": rows(results)}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(content, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    main()
