"""Pictures and texts compared as a model's use asks for it: wholes, parts, or several terms together; and classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from unicl.data.prompts import Prompts, fill, language_of, sentences_for, templates
from unicl.errors import UserError
from unicl.model import Ensemble, TwoTowers, View, quiet
from unicl.objective.bag import Bag
from unicl.objective.classify import ClassifySettings
from unicl.objective.likelihood import log_likelihoods, teller
from unicl.objective.predict import Caption
from unicl.objective.terms import ContrastSettings
from unicl.similarity.find import Similarity, find_similarity
from unicl.space import Embedding

PRODUCTS: Final = 1 << 22
"""Products of parts in one tile, and numbers of its images or texts: 16 MB each in float32."""
TEXTS: Final = 256
"""Prompts that are encoded together."""
_PAIRS: Final = 8
_CAPTION: Final[Mapping[str, str]] = {"en": "a photo of a {}.", "zh": "一张{}的图片。"}
"""The caption whose likelihood scores a class."""


def terms_of(model: TwoTowers, view: View) -> tuple[ContrastSettings, ...]:
    """The contrasts of a model that say what belongs together in a view."""
    return model.settings.contrasts(view)


def reads_parts(model: TwoTowers, view: View) -> bool:
    """Whether a view compares more than whole vectors, so that cosines do not tell its scores."""
    return model.settings.reads_parts(view)


def classes_by_vectors(model: TwoTowers) -> bool:
    """Whether one vector a class tells its scores, so that `TwoTowers.classifier` can be used for them."""
    zero_shot = model.settings.zero_shot
    return not knows_names(model) or (zero_shot.ensemble == "embeddings" and not zero_shot.standardise)


def knows_names(model: TwoTowers) -> bool:
    """Whether a model scores a class by any name: it reads texts, or it predicts them."""
    return model.settings.reads_texts or model.settings.zero_shot.ensemble == "likelihood"


def require_texts(model: TwoTowers) -> None:
    """Raise `UserError` for a model whose text tower cannot be asked about pictures."""
    if model.text is not None and not model.settings.reads_texts:
        raise UserError(
            f"this model was trained with {model.settings.recipe!r}, where texts only help to learn pictures and are "
            "not compared with them; use what it says of pictures: unicl embed, unicl evaluate --task probe, or a "
            "picture as the query of unicl search"
        )


def usual_prompts(model: TwoTowers, names: Sequence[str]) -> Prompts:
    """The prompts for classes of these names where nobody gives any: the set of their language.

    Of a model that predicts captions it is one sentence ("a photo of a cat."), and of a bag of words the name alone,
    since every other word would count as much.
    """
    language = language_of(names)
    if model.settings.zero_shot.ensemble != "likelihood":
        return templates(language)
    return ("{}",) if isinstance(_teller(model), Bag) else (_CAPTION[language],)


def together(model: TwoTowers, ensemble: Ensemble | None) -> TwoTowers:
    """The same model, which from now on puts several prompts of a class together so; None leaves it as it is."""
    if ensemble is not None:
        zero_shot = replace(model.settings.zero_shot, ensemble=ensemble)
        model.settings = replace(model.settings, zero_shot=zero_shot)
    return model


def kept(model: TwoTowers, images: Embedding) -> Embedding | None:
    """What must stay of encoded pictures to compare them later: parts as float16; None if views of wholes tell all."""
    views: tuple[View, ...] = ("instances", "classes")
    likely = model.settings.zero_shot.ensemble == "likelihood" and isinstance(_teller(model), Caption)
    parts = images.parts if likely or any(reads_parts(model, view) for view in views) else None
    if parts is None and classes_by_vectors(model):
        return None
    return replace(images, parts=None if parts is None else replace(parts, values=_halved(parts.values)))


@torch.no_grad()
def scores(model: TwoTowers, images: Embedding, texts: Embedding, *, view: View) -> tuple[Tensor, Tensor]:
    """``(I, T)`` twice: how well pictures and texts agree, for finding texts by picture, and pictures by text.

    The mean of the similarities of the view's terms, by their weights, without their scales; whole vectors are
    compared by cosine where no term is of this view. Columns as `TwoTowers.encode_images` and `encode_texts` give
    them, parts in float16 if memory is short. Beside the tables, memory for one tile of products of parts (see
    `PRODUCTS`); tiles are compared where the model is. Raises `UserError` if a term compares parts and there are none.
    """
    size = (len(images.whole), len(texts.whole))
    by_image, by_text = (torch.empty(size, dtype=_wide(images.whole)) for _ in range(2))
    for rows, *found in score_rows(model, images, texts, view=view):
        by_image[rows], by_text[rows] = found
    return by_image, by_text


def score_rows(
    model: TwoTowers, images: Embedding, texts: Embedding, *, view: View
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The same tables some pictures at a time, for whom they are too large together: the place of the rows, and both.

    Rows are on the CPU. Of no pictures or no texts, nothing comes.
    """
    compared = _compared(model, view)
    height, width = _tile(model, images, texts, view=view)
    for rows in _slices(len(images.whole), height):
        part = _ready(images.select(rows), model.device)
        tiles = [compared(part, _ready(texts.select(c), model.device)) for c in _slices(len(texts.whole), width)]
        if tiles:
            by_image, by_text = (torch.cat([tile[side] for tile in tiles], 1).cpu() for side in (0, 1))
            yield rows, by_image, by_text


def pair_scores(model: TwoTowers, images: Embedding, texts: Embedding, *, view: View) -> tuple[Tensor, Tensor]:
    """``(N,)`` twice: each picture's scores with the text of the same row, as in `scores`."""
    compared = _compared(model, view)
    found = [torch.zeros(2, 0, dtype=_wide(images.whole))]
    for rows in _slices(len(images.whole), _PAIRS):
        tile = compared(*(_ready(each.select(rows), model.device) for each in (images, texts)))
        found.append(torch.stack([table.diagonal().cpu() for table in tile]))
    by_image, by_text = torch.cat(found, 1)
    return by_image, by_text


def class_scores(
    model: TwoTowers,
    images: Embedding,
    names: Sequence[str],
    *,
    templates: Prompts,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """``(N, C)``: how well each picture fits each class by name, as `ModelSettings.zero_shot` says.

    If that asks to standardise, scores depend on which pictures come together (see `standardised`).
    Otherwise as `ensemble_scores`.
    """
    found = ensemble_scores(model, images, names, templates=templates, tick=tick)
    return standardised(found) if model.settings.zero_shot.standardise else found


def likelihoods(model: TwoTowers, images: Embedding, texts: Sequence[str]) -> Tensor:
    """``(I, T)``: how likely each text is for each picture, to a model that predicts captions.

    See `unicl.objective.likelihood.log_likelihoods`. Raises `UserError` for a model that predicts none, and for a text
    in which it finds no word.
    """
    term, tokenizer = _teller(model), model.tokenizer
    assert tokenizer is not None
    tokens, mask = (each.to(model.device) for each in tokenizer(list(texts)))
    found = torch.empty(len(images.whole), len(texts))
    with quiet(model):
        for rows in _slices(len(images.whole), TEXTS):
            found[rows] = log_likelihoods(term, _ready(images.select(rows), model.device), tokens, mask=mask).cpu()
    empty = found.isneginf().any(0).nonzero()[:, 0].tolist()
    if empty:
        raise UserError(f"the class text {texts[empty[0]]!r} has no word that this model knows; give another name")
    return found


@torch.no_grad()
def ensemble_scores(
    model: TwoTowers,
    images: Embedding,
    names: Sequence[str],
    *,
    templates: Prompts,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """``(N, C)``: the scores of several prompts of a class as one, by picture alone.

    "embeddings": the cosine with the mean of the prompts' vectors (`TwoTowers.classifier`). The others compare with
    each prompt, the way from picture to text, without the learned scale: "similarities" is the mean (FILIP, section
    3.2), "probabilities" the mean of softmaxes over the classes, prompt by prompt (Wukong's code), "best" the largest
    (GLoRIA), "likelihood" the mean of `likelihoods`. Each prompt is encoded once, `TEXTS` at a time; ``tick`` is called
    after each prompt of all classes. Raises `UserError` for no class, and for probabilities over classes that have
    different numbers of prompts.
    """
    ensemble = model.settings.zero_shot.ensemble
    if not knows_names(model) or ensemble == "embeddings":
        return model.views_of(images)["classes"] @ model.classifier(names, templates=templates).T
    prompts = filled(names, templates)
    counts = torch.tensor([len(several) for several in prompts])
    if ensemble == "probabilities" and len(set(counts.tolist())) > 1:
        raise UserError(
            "this model averages probabilities prompt by prompt, so every class needs the same number of prompts, but "
            f"they have {int(counts.min())} to {int(counts.max())}; draw as many for each, as in SET:5"
        )
    start = -torch.inf if ensemble == "best" else 0.0
    found_NC = torch.full((len(images.whole), len(prompts)), start, dtype=_wide(images.whole))
    for place in range(int(counts.max())):
        asked = (counts > place).nonzero()[:, 0]
        table = _of_texts(model, images, [prompts[c][place] for c in asked.tolist()])
        if ensemble == "best":
            found_NC[:, asked] = torch.maximum(found_NC[:, asked], table)
        else:
            found_NC[:, asked] += table.softmax(1) if ensemble == "probabilities" else table
        tick()
    return found_NC if ensemble == "best" else found_NC / counts


def standardised(scores_NC: Tensor) -> Tensor:
    """Each class's scores at mean 0 and deviation 1 over these pictures (GLoRIA's released zero-shot).

    The deviation is that of these pictures alone (divided by N, as released). The score of one picture stays as it
    is; of a class that scores all pictures alike, it is 0.
    """
    if len(scores_NC) < 2:
        return scores_NC
    wide = scores_NC.double()
    deviation = wide.std(0, correction=0)
    alike = deviation <= 1e-6 * wide.abs().amax(0)
    return torch.where(alike, 0, (wide - wide.mean(0)) / deviation.masked_fill(alike, 1)).to(scores_NC)


def class_shares(model: TwoTowers, scores_NC: Tensor, *, pictures: int) -> Tensor:
    """``(N, C)`` probabilities of classes from `class_scores` of so many ``pictures``, of which these may be some.

    The softmax of scores times the learned scale; of scores in deviations, of these alone; mean probabilities are what
    they are; of a layer of a sigmoid, each class has its own.
    """
    zero_shot = model.settings.zero_shot
    if zero_shot.standardise and pictures > 1:
        return scores_NC.softmax(-1)
    if model.text is not None and zero_shot.ensemble == "probabilities":
        return scores_NC
    if model.text is None and any(
        isinstance(t, ClassifySettings) and t.loss == "sigmoid" for t in model.settings.terms
    ):
        return scores_NC.sigmoid()
    # A classifier's own layer gives logits as they are, and so does a likelihood; similarities have a learned scale.
    scale = 1.0 if model.text is None or zero_shot.ensemble == "likelihood" else model.scale("classes")
    return (scale * scores_NC).softmax(-1)


def set_note(model: TwoTowers, pictures: int) -> str | None:
    """What must stand beside class scores of so many pictures that depend on the set, or are one picture's."""
    if not knows_names(model) or not model.settings.zero_shot.standardise:
        return None
    if pictures < 2:
        return "a single picture is not z-scored, as several would be over their set: its classes compare by raw scores"
    return f"z-scored over these {pictures:,} pictures: predictions depend on the set"


def how_compared(model: TwoTowers, view: View) -> str:
    """What compares pictures and texts of a view, in words."""
    if view == "classes" and model.settings.zero_shot.ensemble == "likelihood":
        return "how likely the model finds them for a picture"
    names = dict.fromkeys(term.similarity for term in terms_of(model, view))
    return " and ".join(names) or "cosine"


def filled(names: Sequence[str], templates: Prompts) -> list[list[str]]:
    """The prompts of each class; raises `UserError` for no class, and for one without prompts."""
    found = [[fill(sentence, name) for sentence in sentences_for(templates, name)] for name in names]
    if not found or not all(found):
        raise UserError("class scores need at least one class name, and at least one template for each")
    return found


def _teller(model: TwoTowers) -> Bag | Caption:
    found = teller(model.objective.terms.values())
    if found is None or model.tokenizer is None:
        raise UserError(
            f"this model scores classes by the likelihood of captions, but its recipe {model.settings.recipe!r} has no "
            "term that predicts them; give it one of the kind 'caption' or 'bag', or another zero_shot.ensemble"
        )
    return found


def _of_texts(model: TwoTowers, images: Embedding, texts: Sequence[str]) -> Tensor:
    if model.settings.zero_shot.ensemble == "likelihood":
        return likelihoods(model, images, texts)
    parts = [
        scores(model, images, model.encode_texts(texts[rows], batch=TEXTS), view="classes")[0]
        for rows in _slices(len(texts), TEXTS)
    ]
    return torch.cat(parts, 1)


def _compared(model: TwoTowers, view: View) -> Similarity:
    """The mean of the similarities of a view's terms, by their weights."""
    terms = terms_of(model, view) or (ContrastSettings(),)
    total = sum(term.weight for term in terms)
    similar = [find_similarity(term.similarity, options={**term.options, **term.use_options}) for term in terms]

    @torch.no_grad()
    def compared(images: Embedding, texts: Embedding) -> tuple[Tensor, Tensor]:
        everything = slice(None)
        tables = [
            similarity(images.select(everything, dims=term.dims), texts.select(everything, dims=term.dims))
            for similarity, term in zip(similar, terms, strict=True)
        ]
        if len(tables) == 1:
            return tables[0]
        weights = [term.weight / total for term in terms]
        by_image, by_text = (
            torch.stack([weight * table[side] for weight, table in zip(weights, tables, strict=True)]).sum(0)
            for side in (0, 1)
        )
        return by_image, by_text

    return compared


def _tile(model: TwoTowers, images: Embedding, texts: Embedding, *, view: View) -> tuple[int, int]:
    """How many images and texts are compared at once."""
    alike = not reads_parts(model, view)
    several = [1 if alike or e.parts is None else max(e.parts.mask.shape[1], 1) for e in (images, texts)]
    image_size, text_size = (
        parts * max(e.whole.shape[1], 1) for parts, e in zip(several, (images, texts), strict=True)
    )
    products = several[0] * several[1]
    width = min(len(texts.whole), int((PRODUCTS / products) ** 0.5), PRODUCTS // text_size)
    height = min(PRODUCTS // (max(width, 1) * products), PRODUCTS // image_size)
    return max(height, 1), max(width, 1)


def _ready(embedding: Embedding, device: torch.device) -> Embedding:
    """A few rows where they are compared, wide enough to add up."""
    whole = embedding.whole.to(device, _wide(embedding.whole))
    parts = embedding.parts
    if parts is not None:
        parts = replace(parts, values=parts.values.to(device, _wide(parts.values)), mask=parts.mask.to(device))
    return replace(embedding, whole=whole, parts=parts)


def _halved(values: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return values.clamp(-most, most).half()


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _slices(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
