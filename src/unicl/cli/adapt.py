"""The verb that goes on with a model on one's own classes: finetune."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from unicl.cli.say import needs
from unicl.dials import Dials
from unicl.errors import UserError


def finetune(
    model: str = "",
    *,
    data: list[str] | None = None,
    val: list[str] | None = None,
    out: Path,
    loss: Literal["auto", "unicl", "cross_entropy", "sigmoid"] = "auto",
    fraction: float = 1.0,
    layer_decay: float = 1.0,
    wise: list[float] | None = None,
    uncertain: Literal["ignored", "present", "absent"] = "ignored",
    unmentioned: Literal["absent", "ignored"] = "absent",
    epochs: float | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    seed: int | None = None,
    prompts: str | None = None,
    class_names: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    save_every: int | None = None,
    max_bad: int = 100,
    resume: bool = False,
    device: str = "auto",
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> int:
    """Go on with a model on labelled pictures or findings, all of its weights, from its zero-shot classifier.

    Writes a run like `unicl train`, its start in OUT/start, the model between in OUT/wise-0.5, and what they reach on
    --val in OUT/finetune.md.

    Examples: `unicl finetune runs/a --data train/ --val val/ --out runs/ft`;
    `unicl finetune runs/a --data train/ --val val/ --fraction 0.01 --layer-decay 0.75 --out runs/ft1`;
    `unicl finetune runs/a --data 'xrays.csv?findings=*' --val 'test.csv?findings=*' --out runs/xrays`;
    `unicl finetune --resume --out runs/ft`

    Parameters
    ----------
    model
        A run, a checkpoint of any known layout (file or folder), or a hub name.
    data
        A source with labels or findings; repeat for several.
    val
        A source to measure on; repeat for several, such as one like the training data and one unlike it.
    loss
        unicl: the model's own contrast with class prompts, both towers; cross_entropy: a linear layer that begins as
        the class texts; sigmoid: the same for several things in an image; auto: sigmoid for findings and several
        labels, else unicl, or cross_entropy of a model without texts.
    fraction
        Learn from this share of each class, at least one of each, drawn by --seed.
    layer_decay
        Factor of the learning rate from a block to the one before it: 0.65 to 0.9 are common.
    wise
        Shares of the fine-tuned weights at which models between start and end are written and measured; 0.5 if none.
    uncertain
        How an uncertain finding counts.
    unmentioned
        How a blank cell of a finding counts.
    prompts
        Templates for class names: auto, en, zh, clip80, ... or a file.
    class_names
        File from label to class name (several with | between): json or txt.
    max_bad
        Unreadable images to leave out before giving up.
    resume
        Go on from the last checkpoint of --out.
    device
        auto, cpu or cuda.
    set_
        Any other field of the recipe, such as optim.weight_decay=0.05 or fit.eval_every=100.
    """
    from unicl.finetune import Asked, begin, fine_tune, resumed
    from unicl.use.points import shares_of

    dials = Dials(
        epochs=epochs,
        steps=steps,
        lr=lr,
        batch=batch,
        seed=seed,
        prompts=prompts,
        precision=precision,
        save_every=save_every,
    )
    points = tuple(wise or (0.5,))
    shares_of(points)
    asked = Asked(
        model=model,
        data=tuple(data or ()),
        val=tuple(val or ()),
        loss=loss,
        fraction=fraction,
        layer_decay=layer_decay,
        uncertain=uncertain,
        unmentioned=unmentioned,
        class_names=class_names,
        max_bad=max_bad,
    )
    if resume:
        usual = Asked(model="", data=(), max_bad=max_bad)
        if given := _beyond(asdict(asked), asdict(usual)):
            raise UserError(f"--resume goes on with what the run began with; leave out {given}")
        job = resumed(out, dials=dials, more=set_ or ())
        job = replace(job, max_bad=max(max_bad, job.max_bad))
        return fine_tune(job, out, start=None, wise=points, device=device).code
    needs(model, "unicl finetune runs/a --data train/ --out runs/ft")
    needs(data, "unicl finetune runs/a --data train/ --out runs/ft")
    job, start = begin(asked, out, dials=dials, more=set_ or ())
    return fine_tune(job, out, start=start, wise=points, device=device).code


def _beyond(asked: Mapping[str, object], usual: Mapping[str, object]) -> str:
    """The flags that say something else than they do when they are left out; "" if none does."""
    changed = [name for name, value in asked.items() if value != usual[name]]
    return ", ".join(name if name == "model" else f"--{name.replace('_', '-')}" for name in changed)
