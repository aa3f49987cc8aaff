"""The verbs that take models in and give them out: inspect, export, merge."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from unicl.cli.say import wrote

Target = Literal["onnx", "openvino", "torch", "transformers", "open_clip", "openai", "cn_clip", "safetensors"]


def inspect(model: str, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Say what a model is: towers, parameters, preprocessing, tokenizer, scale, and what of its file was left out.

    Examples: `unicl inspect openclip_vit_b32.pt`; `unicl inspect openai/clip-vit-base-patch32`; `unicl inspect runs/a`

    Parameters
    ----------
    model
        A checkpoint of any known layout (file or folder), a run, an export, or a hub name.
    as_json
        Print it as JSON.
    """
    from unicl.exports import inspected
    from unicl.use.inspect import show

    found = inspected(model)
    if as_json:
        print(found.to_json())
    else:
        show(found, Console())
    return 0


def export(
    model: str,
    *,
    to: Target = "onnx",
    out: Path,
    view: Literal["instances", "classes", "both"] | None = None,
    int8: Annotated[bool, Parameter(negative=())] = False,
    fp16: Annotated[bool, Parameter(negative=())] = False,
    raw: Annotated[bool, Parameter(negative=())] = False,
    joint: Annotated[bool, Parameter(negative=())] = False,
    opset: int | None = None,
    data: list[str] | None = None,
    pictures: int | None = None,
) -> int:
    """Write a model for other programs: graphs that run without this library, or another project's checkpoint.

    Graphs (onnx, openvino, torch) are compared with the model, and written only if they agree: see parity.md. They are
    models here too: `unicl search exported/ photos/ "a red fruit"`. Checkpoints come with a model card, README.md.

    Examples: `unicl export runs/a --to onnx --int8 --out exported/`;
    `unicl export runs/a --to transformers --out hf/`

    Parameters
    ----------
    model
        A run, a checkpoint of any known layout, or a hub name.
    out
        A new folder.
    view
        The vectors of which use: instances (search, retrieval), classes (the prefix of a nested model), or both.
    int8
        Products with weights in 8 bits; ranges are taken on --data, else on the run's own data.
    fp16
        Weights in half precision.
    raw
        The heads' outputs as they are, instead of unit vectors.
    joint
        Also one graph from images and texts to scores.
    opset
        Of ONNX.
    data
        A source of pictures and captions for ranges and comparison; repeat for several.
    pictures
        How many of them; 64 if not given.
    """
    from unicl.exports import export as run

    flags = {"dtype": _dtype(int8=int8, fp16=fp16), "normalise": False if raw else None, "joint": joint or None}
    given = {
        name: value for name, value in {**flags, "opset": opset, "pictures": pictures}.items() if value is not None
    }
    tell = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    run(model, out, to=to, view=view, asked=given, data=data or (), say=tell, progress=True)
    return 0


def merge(first: str, second: str, *, alpha: float = 0.5, out: Path) -> int:
    """Write the model between two of one architecture, such as a published one and what was trained from it (WiSE-FT).

    Example: `unicl merge openai/clip-vit-base-patch32 runs/a --alpha 0.5 --out between/`

    Parameters
    ----------
    alpha
        The share of the second model: 0 is the first, 1 the second.
    out
        A new folder for the model.
    """
    from unicl.exports import between

    between(first, second, out, alpha=alpha)
    wrote(out)
    return 0


def _dtype(*, int8: bool, fp16: bool) -> Literal["fp16", "int8"] | None:
    from unicl.errors import UserError

    if int8 and fp16:
        raise UserError("--int8 and --fp16 exclude each other; give one of them")
    return "int8" if int8 else "fp16" if fp16 else None
