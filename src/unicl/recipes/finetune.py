"""What fine-tuning is: a trained model that goes on with the labels or findings of one data set."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.collate import FindingValues
from unicl.data.image import Augment
from unicl.data.stream import StreamSettings
from unicl.errors import UserError
from unicl.model import ModelSettings
from unicl.objective.classify import ClassifySettings
from unicl.objective.terms import ContrastSettings
from unicl.recipes.recipe import Recipe, known
from unicl.train.learning import Learning
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings
from unicl.train.stages import Stage

Loss = Literal["auto", "unicl", "cross_entropy", "sigmoid"]
Kind = Literal["contrast", "softmax", "sigmoid"]
Uncertain = Literal["ignored", "present", "absent"]
Unmentioned = Literal["absent", "ignored"]

KINDS: Final[Mapping[Loss, Kind]] = MappingProxyType(
    {"unicl": "contrast", "cross_entropy": "softmax", "sigmoid": "sigmoid"}
)

COUNTED: Final = {"ignored": 0.5, "present": 1.0, "absent": -1.0}
"""What an uncertain finding counts: one between -1 and 1 is left out of the loss."""


def finetune(settings: ModelSettings, *, layer_decay: float = 1.0, uncertain: Uncertain = "ignored") -> Recipe:
    """The recipe that goes on with a model of these settings, on all its weights.

    Its terms stay: contrasts are UniCL's with class prompts, as Florence is fine-tuned (section 3.2), and a linear
    layer is learned by cross-entropy (WiSE-FT). ``layer_decay``: see `unicl.train.learning.Learning`. ``uncertain``:
    how findings that are neither there nor absent count: CheXpert's U-Ignore, U-Ones and U-Zeros.
    """
    known(uncertain, among=get_args(Uncertain), argument="uncertain")
    learning = Learning(decay=layer_decay)
    contrasts = [term for term in settings.terms if isinstance(term, ContrastSettings)]
    return Recipe(
        name="finetune",
        terms=settings.terms,
        data=StreamSettings(
            batch=64,
            # A row of typed terms carries its class beside its caption; in one space it stands for its class.
            keys="typed" if any(term.texts != "all" for term in contrasts) else "label",
            augment=Augment(crop=(0.5, 1.0)),
            findings=FindingValues(present=1.0, absent=-1.0, uncertain=COUNTED[uncertain]),
        ),
        image=replace(settings.image, weights="random"),
        text=None if settings.text is None else replace(settings.text, weights="random"),
        width=settings.width,
        zero_shot=settings.zero_shot,
        optim=OptimSettings(lr=1e-4, weight_decay=0.1, beta2=0.999, eps=1e-8),
        fit=FitSettings(epochs=10),
        stages=(Stage(name="fine-tuning", image=learning, text=None if settings.text is None else learning),),
    )


def kind_of(loss: Loss, *, texts: bool, several: bool, findings: bool) -> Kind:
    """What a loss is: a contrast with class texts, or a linear layer with a softmax or a sigmoid.

    "auto" is a sigmoid where an image may show several things, else UniCL's contrast, or a softmax for a model without
    ``texts``. Raises `UserError` for a loss that cannot learn from the data.
    """
    known(loss, among=get_args(Loss), argument="loss")
    kind = KINDS.get(loss) or ("sigmoid" if findings or several else "contrast" if texts else "softmax")
    if findings and kind != "sigmoid":
        raise UserError(
            f"--loss {loss} learns from labels, and the data has findings; leave --loss out, or name labels"
        )
    if kind == "contrast" and not texts:
        raise UserError(f"--loss {loss} compares images with class texts, and this model reads none; leave --loss out")
    return kind


def layer_of(loss: Literal["softmax", "sigmoid"], *, findings: bool, unmentioned: Unmentioned) -> ClassifySettings:
    """The linear layer of a loss other than a contrast; it reads what meets the texts."""
    return ClassifySettings(loss=loss, of="findings" if findings else "labels", unmentioned=unmentioned, reads="whole")
