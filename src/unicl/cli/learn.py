"""The verbs that look at data and make models: check, train, evaluate, shard, demo."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from unicl.cli.say import needs, write, wrote
from unicl.dials import Dials, ShardDials, turned
from unicl.errors import UserError

TaskName = Literal[
    "zeroshot",
    "retrieval",
    "probe",
    "knn",
    "i2t",
    "t2i",
    "t2t",
    "i2i",
    "similarity",
    "composed",
    "languages",
    "precision",
    "findings",
    "linear",
    "svm",
]


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

    needs(data, "unicl check photos/")
    sources = load_all(data)
    report = run(sources, batch_size=batch, context=context, max_images=max_images, progress=True)
    if as_json:
        print(report.to_json())
    else:
        show(report, console=Console())
    if html is not None:
        write(html, page(report, sources=sources))
    return 1 if report.problems else 0


def train(
    dials: Dials = Dials(),
    *,
    data: list[str] | None = None,
    recipe: str | None = None,
    init: str | None = None,
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
    `unicl train --init openai/clip-vit-base-patch32 --image-lora 8 --data photos/ --out runs/c`;
    `unicl train --resume --out runs/a`;
    `torchrun --nproc-per-node 2 -m unicl train --recipe unicl --data photos/ --out runs/b`;
    `unicl train --data photos/ --batch 4096 --chunk auto --profile --out runs/p --steps 5`

    Parameters
    ----------
    data
        A source; repeat for several.
    recipe
        clip, unicl, florence, itl (the default), siglip, filip, wukong, gloria, lit, align, chinese_clip, bert_clip,
        convirt, icmlm, tag_prediction, supcon, cross_entropy, or file.py:function.
    init
        A model to start from: a checkpoint of any known layout (file or folder), a run, or a hub name. It brings its
        towers, tokenizer, width and scale; an image or text tower alone takes the place of the recipe's.
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

    from unicl.run import Job, begin, read_job
    from unicl.run import train as run

    if resume and recipe is None and not data:
        job = read_job(out)
        job = replace(job, recipe=turned(job.recipe, dials, more=set_ or ()))
    else:
        needs(data, "unicl train --data photos/ --out runs/a")
        job = Job(
            recipe=begin(recipe or "itl", dials, more=set_ or (), init=init),
            init=init,
            data=tuple(data or ()),
            val=tuple(val or ()),
            class_names=class_names,
            max_bad=max_bad,
        )
    return run(job, out, resume=resume, device=device, profile=profile).code


def evaluate(
    model: str,
    *,
    data: list[str],
    task: list[TaskName] | None = None,
    train_data: list[str] | None = None,
    rated: list[Path] | None = None,
    positive: float | None = None,
    queries: Path | None = None,
    language: str | None = None,
    prompts: str = "auto",
    ensemble: Literal["embeddings", "similarities", "probabilities", "best", "likelihood"] | None = None,
    query_data: list[str] | None = None,
    test_fraction: float = 0.3,
    seed: int = 0,
    batch: int = 64,
    cache: Path | None = None,
    predictions: bool = False,
    out: Path | None = None,
) -> int:
    """Measure a model on your own data; every number comes with a 95 % interval.

    Writes evaluation.json, evaluation.md and evaluation.html into the run folder, or into --out. Given a file of
    predictions in place of a model, it scores that.

    Examples: `unicl evaluate runs/a --data photos/ --task zeroshot --task retrieval --task probe`;
    `unicl evaluate runs/a --data coco.csv --rated sts_test.csv --rated sis_test.csv --task similarity --task t2t`

    Parameters
    ----------
    model
        A run folder, a model folder, or a .jsonl of predictions: ten answers to each query.
    data
        A source to measure on; repeat for several.
    task
        What to measure; if not given, all that the data allows but i2t, t2i, t2t, i2i (text to image and so on),
        precision, svm (VOC07's) and linear (by SGD).
    train_data
        Where probe, knn, svm and linear learn; else a part of the data is split off.
    prompts
        Templates for class names: auto, en, zh, clip80, filip, wukong80, gloria, ... (docs/evaluation.md), or a file.
    ensemble
        How several prompts of a class become one score, if not as the model says: embeddings (the mean of their
        vectors), similarities (the mean of their scores), probabilities, best (the highest score), likelihood.
    query_data
        Images and texts with labels that are the queries of precision, such as ConVIRT's query.csv?label=Variable;
        repeat for several. Else the images and the prompts of their classes are.
    rated
        A table of rated pairs for similarity, such as CxC's: caption1, caption2, agg_score; repeat for several. Pairs
        with a high rating are right in i2t, t2i, t2t and i2i.
    positive
        From which rating on; CxC's 3, and 2.5 for pairs of images, if not given.
    queries
        A table for composed: image, text, sign (+ or -), target.
    language
        The column of the data that names the language of a row, or a column of captions for each: en,de,fr.
    test_fraction
        Share of the data that probe and knn are tested on when there is no training data.
    cache
        A folder that keeps what the image tower says of each image, as `unicl train --cache` does; shared with runs
        whose tower is locked.
    predictions
        Also write the ten best images for each text and the ten best texts for each image beside the report, as
        Chinese-CLIP and MUGE take them.
    """
    from unicl.compare import together
    from unicl.data.sources import load_all
    from unicl.evaluate.languages import read_languages
    from unicl.evaluate.queries import read_composed
    from unicl.evaluate.rated import read_ratings
    from unicl.evaluate.run import evaluate as run
    from unicl.evaluate.terminal import print_report
    from unicl.published import load

    needs(data, "unicl evaluate runs/a --data photos/")
    if model.endswith(".jsonl"):
        return _score(Path(model), data=data, out=out)
    loaded, home = together(load(model), ensemble), out or Path(model)
    if out is None and not home.is_dir():
        raise UserError(f"{model!r} is no folder that a report can be written into; say where it goes with --out")
    report = run(
        loaded,
        load_all(data),
        tasks=tuple(task or ()),
        templates=prompts,
        train_sources=load_all(train_data) if train_data else None,
        test_fraction=test_fraction,
        seed=seed,
        batch=batch,
        ratings=read_ratings(rated, data=data, positive=positive) if rated else None,
        composed=read_composed(queries) if queries else None,
        languages=read_languages(data, language) if language else None,
        asked=load_all(query_data or ()),
        cache=cache,
        predictions=home if predictions else None,
        progress=cache is not None,
    )
    print_report(report, console=Console())
    report.save(home)
    wrote(home, "evaluation.json, .md and .html")
    return 0


def _score(path: Path, *, data: list[str], out: Path | None) -> int:
    from unicl.data.sources import load_all
    from unicl.evaluate.predictions import score_predictions
    from unicl.evaluate.terminal import print_report

    report = score_predictions(path, load_all(data))
    print_report(report, console=Console())
    if out is not None:
        report.save(out)
        wrote(out, "evaluation.json, .md and .html")
    return 0


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

    needs(sources, "unicl shard photos/ --out shards/ --resize 256")
    settings, loaded = dials.settings(), load_all(sources)
    tell = Console(stderr=True, highlight=False, markup=False).print
    summary = run(loaded, out, settings=settings, workers=workers, max_bad=max_bad, progress=True, tell=tell)
    print(summary.report(out))
    return 0


def demo(*, out: Path = Path("demo"), seeds: int = 3, steps: int = 250) -> int:
    """Train clip, unicl, one space and itl on emoji of two artists, and show them side by side.

    Writes data, runs and page.html into --out; at most three minutes on two cores.
    """
    from unicl.demo.run import demo as run

    run(out, seeds=seeds, steps=steps)
    return 0
