"""Features of a locked image tower: each image seen once, kept on disk, read by every step."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unicl.data.image import decode, fit
from unicl.data.sources import Source
from unicl.errors import BadImage, UserError
from unicl.model import TwoTowers
from unicl.space import Sample
from unicl.towers.image import ImageSettings
from unicl.train.ranks import Ranks
from unicl.train.watch import together


def cached_features(sources: Sequence[Source], model: TwoTowers, path: Path, *, ranks: Ranks) -> Tensor:
    """``(samples, F)`` float32 features of all samples in order; a row of NaN where there is no image to read.

    The first process makes the file if it is not there, the others wait for it.
    """
    samples = [sample for source in sources for sample in source.samples]
    names = "\n".join(f"{source.name}/{sample.id}" for source in sources for sample in source.samples)
    fingerprint = blake2b(names.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    with together(ranks=ranks, doing="making features"):
        if ranks.first and not path.is_file():
            made = _make(samples, model)
            part = path.with_name(path.name + ".part")
            save_file({"features": made}, part, metadata={"samples": fingerprint})
            part.rename(path)
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("samples") != fingerprint:
            raise UserError(f"the features in {path} are of other data; delete the file, or choose another --out")
        features: Tensor = file.get_tensor("features")
    return features


def _make(samples: Sequence[Sample], model: TwoTowers, *, batch: int = 64) -> Tensor:
    console = Console(stderr=True)
    features = torch.full((len(samples), model.image.feature_width), torch.nan)
    starts = range(0, len(samples), batch)
    for first in track(starts, "features of the locked image tower", console=console, disable=not console.is_terminal):
        rows, pixels = [], []
        for row in range(first, min(first + batch, len(samples))):
            image = _pixels(samples[row], settings=model.settings.image)
            if image is not None:
                rows.append(row)
                pixels.append(image)
        if rows:
            features[rows] = model.image_features(torch.stack(pixels), batch=batch)
    return features


def _pixels(sample: Sample, *, settings: ImageSettings) -> Tensor | None:
    if sample.image is None:
        return None
    try:
        return fit(decode(sample.image), size=settings.size, frame=settings.frame)
    except BadImage:
        return None
