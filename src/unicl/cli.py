"""The command: one short function per verb. Heavy packages are imported inside, so that --help is quick."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from unicl.dials import Dials, ShardDials, assigned, turned
from unicl.errors import BadImage, UserError

app = App(
    name="unicl",
    help="Train, adapt, evaluate and use language-image models on any mix of labelled, captioned and unpaired data.\n\n"
    "DATA is a folder, table, tar or saved data set, `PATH` or `PATH?image=COLUMN&text=COLUMN&label=COLUMN&weight=2&"
    "namespace=NAME`.",
    help_format="markdown",
)


@app.command
def check(
    *data: str,
    batch: int = 128,
    context: int = 77,
    max_images: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    html: Path | None = None,
) -> int:
    """Say what is in the data and what is wrong with it, before training.

    Example: `unicl check photos/ 'captions.csv?text=title' --html check.html`

    Parameters
    ----------
    data
        Sources to look at, together.
    batch
        Batch size for which false negatives, the floor of the loss and memory are worked out.
    context
        Longest text in tokens.
    max_images
        Look at no more images than these, spread over the data.
    as_json
        Print the report as JSON instead of tables.
    html
        Write the report as a page with pictures.
    """
    from unicl.data.check import check as run
    from unicl.data.check import page, show
    from unicl.data.sources import load_all

    _needs(data, "unicl check photos/")
    sources = load_all(data)
    report = run(sources, batch_size=batch, context=context, max_images=max_images, progress=True)
    if as_json:
        print(report.to_json())
    else:
        show(report, console=Console())
    if html is not None:
        _write(html, page(report, sources=sources))
    return 1 if report.problems else 0


@app.command
def train(
    dials: Dials = Dials(),
    *,
    data: list[str] | None = None,
    recipe: str | None = None,
    out: Path,
    val: list[str] | None = None,
    class_names: str | None = None,
    max_bad: int = 100,
    resume: bool = False,
    profile: bool = False,
    device: str = "auto",
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> int:
    """Train a model on any mix of labelled and captioned images; on several processes with torchrun -m unicl train.

    Examples: `unicl train --data photos/ --data 'captions.csv?text=title' --out runs/a --steps 200`;
    `unicl train --resume --out runs/a`;
    `torchrun --nproc-per-node 2 -m unicl train --recipe unicl --data photos/ --out runs/b`;
    `unicl train --data photos/ --batch 4096 --chunk auto --profile --out runs/p --steps 5`

    Parameters
    ----------
    data
        A source; repeat for several.
    recipe
        clip, unicl, florence, itl (the default), siglip, supcon, cross_entropy, or file.py:function.
    out
        Folder of the run: configuration, metrics, checkpoints.
    val
        A source to evaluate on while training; repeat for several.
    class_names
        File from label to class name (several with | between): json or txt.
    max_bad
        Unreadable images to leave out before giving up.
    resume
        Go on from the last checkpoint; the configuration is the run's own unless given again.
    profile
        Measure the first steps (at least 4): what limits, the share of each part, MFU; a trace in OUT/profile.
    device
        auto, cpu or cuda.
    set_
        Any other field of the recipe, such as optim.weight_decay=0.1 or data.balance=true.
    """
    from dataclasses import replace

    from unicl.run import Job, default_weights, read_job
    from unicl.run import train as run

    if resume and recipe is None and not data:
        job = read_job(out)
        job = replace(job, recipe=turned(job.recipe, dials, more=set_ or ()))
    else:
        _needs(data, "unicl train --data photos/ --out runs/a")
        job = Job(
            recipe=default_weights(assigned(recipe or "itl", dials, more=set_ or ())),
            data=tuple(data or ()),
            val=tuple(val or ()),
            class_names=class_names,
            max_bad=max_bad,
        )
    return run(job, out, resume=resume, device=device, profile=profile).code


@app.command
def evaluate(
    model: Path,
    *,
    data: list[str],
    task: list[Literal["zeroshot", "retrieval", "probe", "knn"]] | None = None,
    train_data: list[str] | None = None,
    prompts: str = "auto",
    test_fraction: float = 0.3,
    seed: int = 0,
    batch: int = 64,
    out: Path | None = None,
) -> int:
    """Measure a model on your own data; every number comes with a 95 % interval.

    Writes evaluation.json, evaluation.md and evaluation.html into the run folder, or into --out.

    Example: `unicl evaluate runs/a --data photos/ --task zeroshot --task retrieval --task probe`

    Parameters
    ----------
    model
        A run folder or a model folder.
    data
        A source to measure on; repeat for several.
    task
        What to measure; all that the data allows if not given.
    train_data
        Where probe and knn learn; else a part of the data is split off.
    prompts
        Templates for class names: auto, en, en-short, zh, zh-short, clip80, unicl81, or a file.
    test_fraction
        Share of the data that probe and knn are tested on when there is no training data.
    """
    from unicl.data.sources import load_all
    from unicl.evaluate.run import evaluate as run
    from unicl.evaluate.terminal import print_report
    from unicl.model import load_model

    _needs(data, "unicl evaluate runs/a --data photos/")
    report = run(
        load_model(model),
        load_all(data),
        tasks=tuple(task or ()),
        templates=prompts,
        train_sources=load_all(train_data) if train_data else None,
        test_fraction=test_fraction,
        seed=seed,
        batch=batch,
    )
    print_report(report, console=Console())
    report.save(out or model)
    _wrote(out or model, "evaluation.json, .md and .html")
    return 0


@app.command
def embed(
    model: Path,
    *photos: str,
    out: Path,
    view: Literal["instances", "classes"] = "instances",
    batch: int = 64,
    dtype: Literal["float32", "float16"] = "float32",
) -> int:
    """Write the vectors of pictures to a folder; goes on where it was stopped.

    Example: `unicl embed runs/a photos/ --out vectors/`

    Parameters
    ----------
    photos
        Folders, files, tars or tables.
    view
        What the vectors are for: instances (search, retrieval) or classes.
    """
    from unicl.model import load_model
    from unicl.use.embed import embed as run

    _needs(photos, "unicl embed runs/a photos/ --out vectors/")
    vectors = run(load_model(model), photos, out=out, batch=batch, view=view, dtype=dtype, progress=True)
    for item in vectors.skipped():
        Console(stderr=True).print(f"left out {item.id}: {item.reason}", markup=False)
    print(f"{vectors.manifest.count} vectors of {vectors.manifest.width} in {out}, {vectors.manifest.skipped} left out")
    return 0


@app.command
def classify(
    model: Path,
    *photos: str,
    names: str | None = None,
    prompts: str | None = None,
    top: int = 5,
    batch: int = 64,
    out: Path | None = None,
) -> int:
    """Say which of some names each picture shows.

    Example: `unicl classify runs/a photos/ --names "apple,pear,plum" --out sheet.html`

    Parameters
    ----------
    names
        Names with commas between, or a .txt or .json file; the model's own classes if not given.
    out
        Write a sheet: .html, .png or .jsonl.
    """
    from unicl.data.prompts import templates
    from unicl.model import load_model
    from unicl.use.classify import classify as run
    from unicl.use.classify import parse_names
    from unicl.use.sheet import require_ending

    _needs(photos, "unicl classify runs/a photos/ --names a,b,c")
    if out is not None:
        require_ending(out)
    wanted = parse_names(names) if names else ()
    sets = templates(prompts) if prompts else ()
    found = run(load_model(model), photos, names=wanted, templates=sets, top=top, batch=batch, progress=True)
    return _shown(found, out)


@app.command
def search(
    model: Path,
    *photos_and_query: str,
    top: int = 12,
    batch: int = 64,
    out: Path | None = None,
) -> int:
    """Find pictures by a text, by a picture, or by a sum of both; the last argument is the query.

    Examples: `unicl search runs/a photos/ "a red fruit" --out sheet.html`;
    `unicl search runs/a photos/ "beach.jpg + night - people"`

    Parameters
    ----------
    photos_and_query
        Folders or files, or one folder that `unicl embed` wrote; then the query.
    out
        Write a contact sheet: .html, .png or .jsonl.
    """
    from unicl.model import load_model
    from unicl.use.search import search as run
    from unicl.use.sheet import require_ending

    if len(photos_and_query) < 2:
        raise UserError('give a folder of pictures and a query, for example: unicl search runs/a photos/ "a red fruit"')
    if out is not None:
        require_ending(out)
    *photos, query = photos_and_query
    found = run(load_model(model), photos, query=query, top=top, batch=batch, progress=True)
    return _shown(found, out)


@app.command
def shard(*sources: str, dials: ShardDials = ShardDials(), out: Path, workers: int = 0, max_bad: int = 100) -> int:
    """Write any data as WebDataset tars, which train fast from any disk; goes on where it was stopped.

    Captions, labels, namespaces and ids stay as they are: train on the folder as on the data it was made of. Every
    shard is read back and checked before it gets its name.

    Example: `unicl shard photos/ --out shards/ --resize 256`

    Parameters
    ----------
    sources
        Folders, tables, tars or saved data sets; several become one.
    out
        Folder for 0000.tar, 0001.tar, ..., and shards.json, which lists them.
    workers
        Threads; as many as processors if 0.
    max_bad
        Unreadable images to leave out before giving up.
    """
    from unicl.data.shards.write import shard as run
    from unicl.data.sources import load_all

    _needs(sources, "unicl shard photos/ --out shards/ --resize 256")
    settings, loaded = dials.settings(), load_all(sources)
    tell = Console(stderr=True, highlight=False, markup=False).print
    summary = run(loaded, out, settings=settings, workers=workers, max_bad=max_bad, progress=True, tell=tell)
    print(summary.report(out))
    return 0


@app.command
def demo(*, out: Path = Path("demo"), seeds: int = 3, steps: int = 250) -> int:
    """Train clip, unicl, one space and itl on emoji of two artists, and show them side by side.

    Writes data, runs and page.html into --out; at most three minutes on two cores.
    """
    from unicl.demo.run import demo as run

    run(out, seeds=seeds, steps=steps)
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave with its exit status: 0 good, 1 failed, 2 a mistake of the user's, 130 interrupted."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    # An installed torchao makes torch warn of its own registrations whenever transformers is imported.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        errors.print(f"unicl: {_plain(error)}\nSee unicl --help.")
        code = 2
    except UserError as error:
        if not error.silent:
            errors.print(f"unicl: {error}")
        code = error.code
    except BadImage as error:
        errors.print(f"unicl: an image cannot be used: {error}")
        code = 2
    except KeyboardInterrupt:
        errors.print("unicl: interrupted")
        code = 130
    except BrokenPipeError:
        code = 141
    sys.exit(code if isinstance(code, int) else 0)


def _needs(data: Any, example: str) -> None:
    if not data:
        raise UserError(f"no data given; name a folder, table or tar, for example: {example}")


def _shown(found: Any, out: Path | None) -> int:
    """Results as a table, and as a sheet if one is asked for."""
    from unicl.use.results import show
    from unicl.use.sheet import write

    show(found, Console())
    if out is not None:
        write(found, out)
        _wrote(out)
    return 0


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    _wrote(path)


def _wrote(path: Path | str, what: str = "") -> None:
    Console(stderr=True, highlight=False, markup=False).print(f"wrote {what} in {path}" if what else f"wrote {path}")


def _plain(error: CycloptsError) -> str:
    return str(error).strip()
