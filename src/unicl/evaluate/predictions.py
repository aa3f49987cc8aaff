"""The ten best answers to each query, as Chinese-CLIP's scorers and MUGE's contest take them: written, read, scored."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from unicl import compare
from unicl.data.formats.queries import CHINESE_CLIP, MUGE, NAMINGS, Naming, Query, read_queries
from unicl.data.formats.rows import parse_object
from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap, means
from unicl.evaluate.exact import cosines, grid, require_finite, tiles
from unicl.evaluate.job import Job
from unicl.evaluate.parts import encoded_texts
from unicl.evaluate.report import Fact, Report, Result, Score
from unicl.evaluate.retrieval import CUTS
from unicl.evaluate.scoring import measured

TOP: Final = 10
"""How many answers a query has: no more, no fewer."""
ROWS: Final = 64

Direction = Literal["text to image", "image to text"]
_ENDINGS: Final[Mapping[Direction, str]] = {
    "text to image": "_predictions.jsonl",
    "image to text": "_tr_predictions.jsonl",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The ids of the `TOP` best answers to each query, by the query's id."""

    direction: Direction
    found: Mapping[object, tuple[object, ...]]


def predicted(job: Job, sources: Sequence[Source], folder: Path) -> Result:
    """Write the predictions for each source into ``folder``, and score those whose right answers are known.

    All images of a source that can be read are answers to its texts, those that no text names too, and all its texts
    are answers to its images: as Chinese-CLIP's scripts do it. Raises `UserError` for data without ids.
    """
    results: list[tuple[Path, tuple[Score, ...]]] = []
    for source in sources:
        queries = _queries(source)
        for answers in _answers(job, source, queries):
            path = folder / f"{_stem(source)}{_ENDINGS[answers.direction]}"
            if path in (written for written, _ in results):
                raise UserError(f"two of the sources would write {path.name}; evaluate one at a time")
            write_answers(path, answers, queries)
            results.append((path, _scores(answers, queries, bootstrap=job.options.bootstrap)))
    if not results:
        raise UserError(f"predictions are {TOP} answers to a query, and the data has fewer images and fewer texts")
    return Result(
        task="predictions",
        title=f"The {TOP} best answers",
        scores=tuple(score for _, scores in results for score in scores),
        facts={"written": ", ".join(str(path) for path, _ in results), **_FACTS},
        notes=tuple(f"the right answers to {path.name} are not known here" for path, scores in results if not scores),
    )


def score_predictions(path: Path, sources: Sequence[Source], *, bootstrap: Bootstrap = Bootstrap()) -> Report:
    """The recalls of a file of predictions against the data that holds the right answers.

    Chinese-CLIP's numbers: the share of all queries with a right answer among the first 1, 5 and 10, and the mean of
    the three. Raises `UserError` for a query that is not answered and for answers that are not `TOP` different ids.
    """
    if len(sources) != 1:
        raise UserError(f"a file of predictions belongs to one data set, and {len(sources)} are given")
    queries = _queries(sources[0])
    answers = read_answers(path)
    _require_answered(answers, _right(queries, direction=answers.direction))
    scores = _scores(answers, queries, bootstrap=bootstrap)
    if not scores:
        raise UserError(f"{sources[0].name} names no right answer (a test set?), so {path.name} cannot be scored here")
    title = f"Predictions, {answers.direction}"
    result = Result(task="predictions", title=title, scores=scores, facts={"queries": scores[0].n, **_FACTS})
    facts: dict[str, Fact] = {"predictions": path.name, "data": sources[0].name}
    notes = tuple(f"{sources[0].name}: {note}" for note in sources[0].notes)
    return Report(title=path.name, facts=facts, level=bootstrap.level, results=(result,), notes=notes)


def write_answers(path: Path, answers: Answers, queries: Sequence[Query]) -> None:
    """One JSON object a query: ``text_id`` and ``image_ids``, or ``image_id`` and ``text_ids``; MUGE's own names.

    Raises `UserError` if it cannot be written.
    """
    naming, texts = queries[0].naming, {query.id: query.text for query in queries}
    lines = []
    for id, found in answers.found.items():
        if answers.direction == "image to text":
            fields: dict[str, object] = {"image_id": id, "text_ids": found}
        else:
            fields = {naming.id: id, **({naming.text: texts[id]} if naming == MUGE else {}), naming.images: found}
        lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}", code=1) from error


def read_answers(path: Path) -> Answers:
    """A file of predictions; the names of its fields say in which direction. Raises `UserError` for bad answers."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as predictions: {getattr(error, 'strerror', None) or error}") from error
    places = [(f"{path.name}, line {number:,}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not places:
        raise UserError(f"{path.name} is empty; wanted is one object a query: {_wanted(CHINESE_CLIP)}")
    rows = [(where, parse_object(line, where=where)) for where, line in places]
    names = _names(rows[0][1], where=path.name)
    found: dict[object, tuple[object, ...]] = {}
    for where, row in rows:
        if not names <= row.keys():
            raise UserError(f"{where} lacks {' or '.join(sorted(names - row.keys()))!r}, which the first line has")
        query, answers = (row[name] for name in sorted(names, key=lambda name: name.endswith("ids")))
        if query in found:
            raise UserError(f"{where}: the query {query!r} is answered twice; keep one")
        found[query] = _checked(answers, where=where, query=query)
    return Answers(direction="image to text" if "image_id" in names else "text to image", found=found)


_FACTS: Final[Mapping[str, Fact]] = {"counted as": "Chinese-CLIP's scorers: all queries, any right answer"}


def _queries(source: Source) -> list[Query]:
    if source.texts is None:
        raise UserError(
            f"predictions need ids of images and texts, and {source.name} ({source.format}) has none: give data in "
            "Chinese-CLIP's layout, X_imgs.tsv with X_texts.jsonl, or an LMDB"
        )
    name, queries, seen = source.texts.name, list(read_queries(source.texts)), dict[object, int]()
    for query in queries:
        if not isinstance(query.id, int | str):
            raise UserError(f"{name}, line {query.place:,} has no {query.naming.id!r} to be answered under")
        if query.id in seen:
            places = f"lines {seen[query.id]:,} and {query.place:,}"
            raise UserError(f"{name} has the {query.naming.id} {query.id!r} twice ({places}); number them anew")
        seen[query.id] = query.place
    return queries


def _answers(job: Job, source: Source, queries: Sequence[Query]) -> Iterator[Answers]:
    places = {sample.image: row for row, sample in enumerate(job.pictures.samples)}
    written = {str(id): id for query in queries for id in query.images}
    found = [(places[s.image], _id(s.id, written)) for s in source.samples if s.image in places]
    images, texts = [id for _, id in found], [query.id for query in queries]
    by_text, by_image = _tables(job, torch.tensor([row for row, _ in found]), [str(query.text) for query in queries])
    if len(images) >= TOP:
        yield Answers(direction="text to image", found=_named(by_text, asked=texts, answers=images))
    if len(texts) >= TOP:
        yield Answers(direction="image to text", found=_named(by_image, asked=images, answers=texts))


def _tables(job: Job, rows: Tensor, texts: Sequence[str]) -> tuple[Callable[[slice], Tensor], ...]:
    """What gives the scores of some texts with all images, and of some images with all texts."""
    model, pictures = job.model, job.pictures.take(rows)
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    index = torch.tensor([number[text] for text in texts])
    if pictures.embedding is not None and compare.reads_parts(model, "instances"):
        images, encoded = pictures.embedding, encoded_texts(model, list(number))
        return (
            lambda rows: compare.scores(model, images, encoded.select(index[rows]), view="instances")[1].T,
            lambda rows: compare.scores(model, images.select(rows), encoded, view="instances")[0][:, index],
        )
    vectors = grid(require_finite(model.embed_text(list(number), view="instances"), what="text embeddings"))
    seen = grid(pictures.instances)
    return lambda rows: cosines(vectors[index[rows]], seen), lambda rows: cosines(seen[rows], vectors)[:, index]


def _named(
    table: Callable[[slice], Tensor], *, asked: Sequence[object], answers: Sequence[object]
) -> dict[object, tuple[object, ...]]:
    found: dict[object, tuple[object, ...]] = {}
    for rows in tiles(len(asked), tile=ROWS):
        for query, scores in zip(asked[rows], table(rows), strict=True):
            found[query] = tuple(answers[place] for place in _best(scores))
    return found


def _best(scores_N: Tensor) -> list[int]:
    """The places of the `TOP` highest scores; of equal ones, the first."""
    lowest = scores_N.topk(TOP).values[-1]
    places = (scores_N >= lowest).nonzero()[:, 0]
    order = scores_N[places].sort(descending=True, stable=True).indices[:TOP]
    return [int(place) for place in places[order]]


def _scores(answers: Answers, queries: Sequence[Query], *, bootstrap: Bootstrap) -> tuple[Score, ...]:
    """The recalls, with each query drawn again for their intervals; none if no right answer is known.

    A query without answers, an image that cannot be read, has found nothing.
    """
    right = _right(queries, direction=answers.direction)
    if not any(right.values()):
        return ()
    hits = [[not own.isdisjoint(answers.found.get(query, ())[:k]) for k in CUTS] for query, own in right.items()]
    recalls_QK = torch.tensor(hits, dtype=torch.float64)
    values = torch.cat([recalls_QK.mean(1, keepdim=True), recalls_QK], 1)
    numbers = measured(means(values), samples=len(values), bootstrap=bootstrap)
    key, name = answers.direction.replace(" ", "_"), answers.direction
    labels = [("mean_recall", "mean recall"), *((f"r{k}", f"recall@{k}") for k in CUTS)]
    return tuple(
        Score(key=f"predictions/{key}/{short}", name=f"{name}, {long}", value=v, low=low, high=high, n=len(values))
        for (short, long), (v, low, high) in zip(labels, numbers, strict=True)
    )


def _right(queries: Sequence[Query], *, direction: Direction) -> dict[object, set[object]]:
    """The right answers by query: of all texts, and of the images that a text names."""
    if direction == "text to image":
        return {query.id: set(query.images) for query in queries}
    found: dict[object, set[object]] = {}
    for query in queries:
        for image in query.images:
            found.setdefault(image, set()).add(query.id)
    return found


def _require_answered(answers: Answers, right: Mapping[object, set[object]]) -> None:
    """Every query answered, by ids of the kind that the data has."""
    kinds = {type(id) for own in right.values() for id in own}
    wrong = next((id for found in answers.found.values() for id in found if kinds and type(id) not in kinds), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is an answer, and the ids of the data are {'/'.join(k.__name__ for k in kinds)}")
    missing = [query for query in right if query not in answers.found]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(right):,} queries are not answered, the first is {missing[0]!r}: each needs "
            f"{TOP} answers, also an image that cannot be read, under its id as the data writes it"
        )


def _names(row: Mapping[str, object], *, where: str) -> frozenset[str]:
    known = [frozenset(("image_id", "text_ids")), *(frozenset((naming.id, naming.images)) for naming in NAMINGS)]
    found = next((names for names in known if names <= row.keys()), None)
    if found is None:
        raise UserError(
            f"{where} has {', '.join(row)}; wanted are {_wanted(CHINESE_CLIP)}, {_wanted(MUGE)} or "
            "{'image_id': ..., 'text_ids': [...]}"
        )
    return found


def _wanted(naming: Naming) -> str:
    return f"{{{naming.id!r}: ..., {naming.images!r}: [...]}}"


def _checked(answers: object, *, where: str, query: object) -> tuple[object, ...]:
    if not isinstance(answers, list) or len(answers) != TOP:
        count = len(answers) if isinstance(answers, list) else "no list of"
        raise UserError(f"{where}: the query {query!r} has {count} answers; wanted are exactly {TOP}")
    if len({str(answer) for answer in answers}) != TOP:
        raise UserError(f"{where}: an answer to the query {query!r} comes twice; wanted are {TOP} different ones")
    return tuple(answers)


def _id(sample: str, written: Mapping[str, object]) -> object:
    """The id of an image as the texts write it; a number if none does and it is one."""
    id = sample.removeprefix("image ")
    return written.get(id, int(id) if id.isascii() and id.isdigit() and str(int(id)) == id else id)


def _stem(source: Source) -> str:
    """What the part of the data set is called: train of train_texts.jsonl, of lmdb/train and of train.tsv."""
    assert source.texts is not None
    if source.texts.is_dir():
        return source.texts.parent.name
    return source.texts.name.removesuffix(".jsonl").removesuffix("_texts").removesuffix("_queries")
