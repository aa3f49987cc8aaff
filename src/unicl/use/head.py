"""A model's class texts as a linear layer: the classifier that fine-tuning starts from (WiSE-FT, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl import compare
from unicl.data.collate import ClassTexts
from unicl.data.prompts import language_of
from unicl.errors import UserError
from unicl.evaluate.known import Known
from unicl.evaluate.pictures import embed_pictures
from unicl.model import TwoTowers
from unicl.objective.classify import Classify, ClassifySettings, ClassName
from unicl.objective.terms import ContrastSettings
from unicl.similarity.scale import Scale
from unicl.space import Sample
from unicl.use.merge import merge

DEVIATION = 0.01
"""Of the weights of classes that no text stands for, as VirTex's linear layers start."""
LOOKED = 256
"""How many images say where the biases of a sigmoid lie."""
RARE = 0.001
"""No class is taken to be rarer, or commoner than all but this."""


@torch.no_grad()
def with_head(
    model: TwoTowers,
    classes: Sequence[ClassName],
    *,
    settings: ClassifySettings,
    texts: ClassTexts,
    generator: torch.Generator,
) -> TwoTowers:
    """The image tower with a linear layer that says of pictures what its class texts say: zero-shot, exactly.

    The row of a class is its vector (`TwoTowers.classifier`) times the learned scale; biases are 0, or what a model
    learned that was trained by a sigmoid. Otherwise a sigmoid has to be brought to its level: see `level`. A model
    without texts goes on with the rows of its own classifier, if that has all classes, or with rows drawn by
    ``generator`` (VirTex: normal, of .01).
    Raises `UserError` for a model whose classes no single vector stands for.
    """
    model = merge(model)
    reads = settings if model.text is not None else replace(settings, reads="features", dims=None)
    if reads.reads == "whole":
        reads = replace(reads, dims=model.settings.views["classes"])
    image = replace(model.settings.image, locked=False)
    given = replace(model.settings, image=image, text=None, terms=(reads,), classes=tuple(classes))
    headed = TwoTowers(given, tokenizer=None, image=model.image)
    layer = _layer(headed)
    by_texts = model.text is not None
    rows = _text_rows(model, layer, texts=texts) if by_texts else _own_rows(model, layer, generator=generator)
    layer.head.weight.copy_(rows[:, :-1])
    layer.head.bias.copy_(rows[:, -1])
    return headed.eval()


@torch.no_grad()
def level(model: TwoTowers, samples: Sequence[Sample], *, progress: bool = False) -> None:
    """Give a sigmoid's layer the biases at which, on average, it says of each class how often it is there.

    How often is counted over all samples, where the layer's own scores lie is seen on `LOOKED` images. The order in
    which a class puts images stays that of its text. Raises `UserError` if no image can be read.
    """
    layer = _layer(model)
    told = [sample for sample in samples if sample.image is not None and (sample.findings or sample.labels)]
    yes_NC, asked_NC = _known(told, layer)
    share = (yes_NC & asked_NC).sum(0) / asked_NC.sum(0).clamp(min=1)
    some = told[:: -(-len(told) // LOOKED)]
    pictures = embed_pictures(model, some, progress=progress, what="images for the start")
    lie = (pictures.classes @ model.classifier(layer.labels, templates=("{}",)).T).mean(0)
    layer.head.bias.add_(torch.logit(share.clamp(RARE, 1 - RARE)).to(lie) - lie)


def with_contrasts(model: TwoTowers) -> TwoTowers:
    """The towers, adapters merged, with what compares images and texts and nothing else, both to learn as a whole.

    Raises `UserError` for a model without.
    """
    model = merge(model)
    settings, terms = model.settings, tuple(t for t in model.settings.terms if isinstance(t, ContrastSettings))
    if settings.text is None or not terms:
        raise UserError(f"this model was trained with {settings.recipe!r} and compares no images with texts")
    image, text = replace(settings.image, locked=False), replace(settings.text, locked=False)
    given = replace(settings, image=image, text=text, terms=terms, classes=())
    whole = TwoTowers(given, tokenizer=model.tokenizer, image=model.image, text=model.text)
    own = model.objective.state_dict()
    whole.objective.load_state_dict({name: own[name] for name in whole.objective.state_dict()})
    return whole.eval()


def write_start(model: TwoTowers, folder: Path, *, tokenizer: Path) -> None:
    """Write a model as a folder that is whole or absent, and its tokenizer, if it has one, into one of its own."""
    part = folder.with_name(folder.name + ".part")
    for place in (folder, part, tokenizer):
        rmtree(place, ignore_errors=True)
    if model.tokenizer is not None:
        model.tokenizer.save(tokenizer)
    model.save(part)
    part.rename(folder)


def _known(samples: Sequence[Sample], layer: Classify) -> tuple[Tensor, Tensor]:
    """``(N, C)`` bool twice: whether a class is there, and whether that is known."""
    if layer.settings.of == "findings":
        known = Known.of(samples, layer.labels, unmentioned=layer.settings.unmentioned)
        return known.yes, known.asked
    yes = torch.tensor([[label in sample.labels for label in layer.labels] for sample in samples])
    return yes, torch.ones_like(yes)


def _layer(model: TwoTowers) -> Classify:
    return next(term for term in model.objective.terms.values() if isinstance(term, Classify))


def _text_rows(model: TwoTowers, layer: Classify, *, texts: ClassTexts) -> Tensor:
    """``(C, D' + 1)``: vectors of the classes and their biases."""
    if not compare.classes_by_vectors(model) or compare.reads_parts(model, "classes"):
        raise UserError(
            "this model compares pictures with several prompts of a class, or by parts, and no single vector stands "
            "for a class; fine-tune it as it was trained, with --loss unicl"
        )
    names = [texts.names.get(label, (label,)) for label in layer.labels]
    scale = model.scale("classes")
    yes = scale * _vectors(model, names, texts=texts)
    own = _bias(model) if layer.settings.loss == "sigmoid" else None
    return torch.cat([yes, torch.full((len(yes), 1), own or 0.0)], dim=1)


def _vectors(model: TwoTowers, names: Sequence[tuple[str, ...]], *, texts: ClassTexts) -> Tensor:
    """``(C, D')`` unit vectors of classes, each the mean over its names."""
    every = [name for several in names for name in several]
    vectors = model.classifier(every, templates=texts.templates[language_of(every)])
    parts = torch.split(vectors, [len(several) for several in names])
    return torch.stack([part[0] if len(part) == 1 else F.normalize(part.mean(0), dim=-1) for part in parts])


def has_bias(model: TwoTowers) -> bool:
    """Whether a model was trained by a sigmoid, with a bias that says where its scores lie."""
    return _bias(model) is not None


def _bias(model: TwoTowers) -> float | None:
    scales: Mapping[str, Scale] = model.objective.scales()
    scale = scales.get("classes") or next(iter(scales.values()), None)
    return None if scale is None or scale.bias is None else float(scale.bias.detach())


def _own_rows(model: TwoTowers, layer: Classify, *, generator: torch.Generator) -> Tensor:
    own = next((term for term in model.objective.terms.values() if isinstance(term, Classify)), None)
    if own is not None and set(layer.labels) <= set(own.labels) and own.settings.reads == layer.settings.reads:
        return model.classifier(layer.labels, templates=("{}",))
    size = layer.head.weight.shape
    drawn = DEVIATION * torch.randn(size, generator=generator)
    return torch.cat([drawn, torch.zeros(len(drawn), 1)], dim=1)
