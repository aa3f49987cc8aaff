"""What AdamW's states and the weights take in fewer bits, and what that does to a short run.

Bytes a parameter are measured on ViT-Ti/16 with the default text tower, after one step. The effect is that on small
towers trained on pictures made here (shapes of a colour on noise, each with its caption), over several seeds: the loss
at the end, and how often a new picture finds its caption among all twelve.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL.Image import Image
from resume import COLORS, SHAPES, picture
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from unicl.data.collate import ClassTexts, Collator, Drawn
from unicl.data.text import Tokenizer, train_tokenizer
from unicl.model import ModelSettings, TwoTowers
from unicl.recipes import clip
from unicl.space import Batch, Sample
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.train.compute import ComputeSettings
from unicl.train.lowbit import States, Weights
from unicl.train.optim import OptimSettings, adamw, learning_rate, take_step
from unicl.train.prepare import prepare
from unicl.train.ranks import Ranks
from unicl.train.step import Precision, plain_step

CAPTIONS: Final = tuple(f"a {color} {shape}" for color in COLORS for shape in SHAPES)
SIZE: Final = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to keep states and weights."""

    states: States
    weights: Weights
    precision: Precision

    @property
    def name(self) -> str:
        """For the table."""
        return f"states {self.states}, weights {self.weights}, products {self.precision}"

    @property
    def optim(self) -> OptimSettings:
        """The optimiser's settings."""
        return OptimSettings(lr=5e-4, weight_decay=0.1, states=self.states, weights=self.weights)


OPTIONS: Final = (
    Option(states="fp32", weights="fp32", precision="fp32"),
    Option(states="bf16", weights="fp32", precision="fp32"),
    Option(states="int8", weights="fp32", precision="fp32"),
    Option(states="fp32", weights="fp32", precision="bf16"),
    Option(states="bf16", weights="bf16", precision="bf16"),
    Option(states="int8", weights="bf16", precision="bf16"),
)


def held(tensor: Tensor) -> int:
    """Bytes of a tensor, or of the tensors that it consists of."""
    parts = [getattr(tensor, name) for name in getattr(tensor, "tensor_attrs", ())]
    return sum(part.nbytes for part in parts) if parts else tensor.nbytes


def bytes_of(option: Option, tokenizer: Tokenizer) -> dict[str, float]:
    """Bytes a parameter of weights and of states, gradients not included."""
    text = TextSettings(name="clip")
    settings = ModelSettings(image=ImageSettings(), text=text, width=512, terms=clip().terms)
    model = TwoTowers(settings, tokenizer=tokenizer)
    prepare(model, ComputeSettings(), optim=option.optim, precision=option.precision)
    optimiser = adamw(model, option.optim)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    take_step(optimiser, rate=1e-3, seed=0)
    count = sum(p.numel() for p in model.parameters())
    states = [held(value) for each in optimiser.state.values() for name, value in each.items() if name != "step"]
    weights = sum(p.nbytes for p in model.parameters()) / count
    return {"parameters": count, "weights": weights, "states": sum(states) / count}


def batch_of(size: int, *, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Batch, Tensor]:
    """Random pictures with their captions, and which caption each has."""
    kinds = rng.integers(len(CAPTIONS), size=size)
    pixels = []
    for kind in kinds:
        color, shape = COLORS[list(COLORS)[kind // len(SHAPES)]], SHAPES[kind % len(SHAPES)]
        pixels.append(image_of(picture(shape, color, rng=rng)))
    drawn = [
        Drawn(sample=Sample(id=str(k), captions=(CAPTIONS[kind],)), source="s", caption=CAPTIONS[kind], image=image)
        for k, (kind, image) in enumerate(zip(kinds, pixels, strict=True))
    ]
    texts = ClassTexts(templates={"en": ("{}",), "zh": ("{}",)}, names={})
    collator = Collator(mode="text", texts=texts, tokenizer=tokenizer)
    return collator(drawn, rng_key=(0,)), torch.from_numpy(kinds)


def image_of(drawn: Image) -> Tensor:
    """Pixels of a picture, brought to `SIZE`."""
    pixels = torch.from_numpy(np.asarray(drawn.resize((SIZE, SIZE))).copy())
    return pixels.permute(2, 0, 1)


def train(option: Option, *, tokenizer: Tokenizer, steps: int, seed: int) -> dict[str, float]:
    """A short run: its loss at the end, its accuracy on new pictures, seconds of an update."""
    torch.manual_seed(seed)
    image = ImageSettings(name="test_resnet", size=SIZE)
    text = TextSettings(layers=2, dim=64, heads=4)
    model = TwoTowers(ModelSettings(image=image, text=text, width=64, terms=clip().terms), tokenizer=tokenizer)
    prepare(model.train(), ComputeSettings(), optim=option.optim, precision=option.precision)
    optimiser = adamw(model, option.optim)
    rng, losses, seconds = np.random.default_rng(seed), [], []
    for step in range(steps):
        batch, _ = batch_of(48, tokenizer=tokenizer, rng=rng)
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(plain_step(model, batch, ranks=Ranks(), precision=option.precision).loss))
        began = time.process_time()
        take_step(optimiser, rate=learning_rate(step, steps=steps, settings=option.optim), seed=step)
        seconds.append(time.process_time() - began)
    new, kinds = batch_of(480, tokenizer=tokenizer, rng=np.random.default_rng(10_000 + seed))
    found = model.similarity(new.images, CAPTIONS).argmax(1)
    return {
        "loss": statistics.mean(losses[-10:]),
        "accuracy": float((found == kinds).float().mean()),
        "seconds of an update": statistics.median(seconds),
        "parameters": _count(model),
    }


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def measure(option: Option, *, steps: int, seeds: int) -> dict[str, Any]:
    """Memory, and means and deviations over the seeds."""
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=400, context=16)
    large = train_tokenizer(CAPTIONS, vocab_size=400, context=77)
    runs = [train(option, tokenizer=tokenizer, steps=steps, seed=seed) for seed in range(seeds)]
    effect = {
        name: [statistics.mean(run[name] for run in runs), statistics.stdev(run[name] for run in runs)]
        for name in ("loss", "accuracy")
    }
    update = statistics.median(run["seconds of an update"] / run["parameters"] for run in runs) * 1e9
    return {"bytes a parameter": bytes_of(option, large), **effect, "nanoseconds of an update a parameter": update}


def rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the README's table: bytes against those of AdamW in float32, accuracy in the name."""
    plain = total(next(iter(results.values())))
    return [
        {
            "what": f"bytes a parameter, {name} (accuracy {result['accuracy'][0]:.3f} ± {result['accuracy'][1]:.3f})",
            "ours": round(total(result), 2),
            "peer": round(plain, 2),
            "peer name": "AdamW in float32",
            "ratio": round(plain / total(result), 2),
        }
        for name, result in results.items()
    ]


def total(result: dict[str, Any]) -> float:
    """Bytes a parameter of weights and states together."""
    return float(result["bytes a parameter"]["weights"] + result["bytes a parameter"]["states"])


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table of all options."""
    table = Table("option", "weights, B", "states, B", "loss", "accuracy", "update, ns a parameter")
    for name, result in results.items():
        memory = result["bytes a parameter"]
        effect = [f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in (result["loss"], result["accuracy"])]
        update = f"{result['nanoseconds of an update a parameter']:.0f}"
        table.add_row(name, f"{memory['weights']:.2f}", f"{memory['states']:.2f}", *effect, update)
    Console(width=140).print(table)


def main() -> None:
    """Measure all options and write ``results/memory.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    asked = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for option in OPTIONS:
        results[option.name] = measure(option, steps=asked.steps, seeds=asked.seeds)
        Console().print(option.name, highlight=False)
    content = {"steps": asked.steps, "seeds": asked.seeds, "options": results, "rows": rows(results)}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(content, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    main()
