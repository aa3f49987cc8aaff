"""What captions give to a run before its first step: the words to hide in them, and the tags of their images."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unicl.data.collate import Hide
from unicl.data.sources import Source
from unicl.data.text import Tokenizer
from unicl.data.words.hide import HideWords
from unicl.data.words.masking import hidden_words
from unicl.data.words.phrases import Parsed, parse
from unicl.data.words.tags import captions_of, tagged, tags_by_cluster, tags_by_speech
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.model import words_of
from unicl.objective.terms import CaptionSettings
from unicl.recipes import Recipe
from unicl.towers.build import build_text_tower
from unicl.train.ranks import Ranks
from unicl.train.record import replace_text
from unicl.train.watch import together


def hiding(recipe: Recipe, tokenizer: Tokenizer | None) -> Hide | None:
    """What hides words of captions, where terms look for hidden words; raises `UserError` if others read all words."""
    tasks = [(term.name, term.task) for term in recipe.terms if isinstance(term, CaptionSettings)]
    hidden, written = ([name for name, task in tasks if (task == "masked") is masked] for masked in (True, False))
    if tokenizer is None or not hidden:
        return None
    if written:
        raise UserError(
            f"the term {written[0]!r} writes captions whole, but {hidden[0]!r} hides some of their words in the same "
            "batch; train one of them"
        )
    words = words_of(tokenizer)
    return HideWords(size=words.size, mask=words.mask, marks=words.marks)


def hiding_concepts(
    recipe: Recipe,
    sources: Sequence[Source],
    tokenizer: Tokenizer | None,
    *,
    out: Path,
    ranks: Ranks,
    say: Callable[[str], None],
) -> Hide | None:
    """What hides the words that ``data.hidden`` asks for, told by ``say``; None if it asks for none."""
    if recipe.data.hidden is None or tokenizer is None:
        return None
    captions = captions_of(sources)
    with together(ranks=ranks, doing="reading captions"):
        if ranks.first:
            deque(_read(captions, out), maxlen=0)
    read = parse(list(captions), cache=out / "words.db")
    hide = hidden_words(captions, read, recipe.data.hidden, tokenizer=tokenizer)
    say(hide.concepts.told())
    return hide


def tagged_sources(
    recipe: Recipe, sources: Sequence[Source], tokenizer: Tokenizer | None, *, out: Path, ranks: Ranks
) -> Sequence[Source]:
    """The sources with the tags that the recipe asks for; the first process makes them, all read them in the run."""
    if recipe.tags is None:
        return sources
    captions, file = captions_of(sources), out / "tags.json"
    with together(ranks=ranks, doing="tagging images"):
        if ranks.first and not file.is_file():
            replace_text(file, json.dumps(_tags(recipe, captions, tokenizer, out=out)) + "\n")
    tags = json.loads(file.read_text(encoding="utf-8"))
    return [tagged(source, tags) for source in sources]


def _tags(
    recipe: Recipe, captions: Counter[str], tokenizer: Tokenizer | None, *, out: Path
) -> dict[str, tuple[str, ...]]:
    asked, text = recipe.tags, recipe.text or recipe.words
    assert asked is not None
    if asked.by != "clusters":
        return tags_by_speech(captions, _read(captions, out), speech=asked.by, count=asked.count)
    if text is None or tokenizer is None:
        raise UserError(
            f"recipe {recipe.name!r} makes clusters of captions, but no language model reads them; set words"
        )
    # What a token of its own says of the whole text, before any head (as remembered: BERT's [CLS]).
    plain = replace(text, pool="cls", parts=None, head="linear", locked=False, lora=0)
    tower = build_text_tower(plain, width=1, tokenizer=tokenizer).eval()

    def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
        parts = (tower.features(*tokenizer(texts[k : k + 256])) for k in range(0, len(texts), 256))
        with torch.no_grad():
            return np.concatenate([part.float().numpy() for part in parts])

    return tags_by_cluster(captions, count=asked.count, vectors=vectors, seed=recipe.fit.seed)


def _read(captions: Counter[str], out: Path) -> Iterator[Parsed | None]:
    """The captions in words; what was found is kept in the run's folder, for other processes and for later."""
    with bar("reading captions", total=len(captions), shown=True) as moved:
        yield from parse(list(captions), cache=out / "words.db", workers=os.cpu_count() or 1, moved=moved)
