"""A linear layer on frozen features, trained by SGD: VirTex's protocol for ImageNet (section 4.1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.classification import classified
from unicl.evaluate.job import Job
from unicl.evaluate.learned import divide
from unicl.evaluate.probe import Fit
from unicl.evaluate.report import Result
from unicl.evaluate.zeroshot import Truth, zero_shot


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdSettings:
    """SGD with momentum, no decay, and a rate that goes down a cosine to 0; weights start normal with ``deviation``."""

    epochs: int = 100
    batch: int = 256
    lr: float = 0.3
    momentum: float = 0.9
    deviation: float = 0.01


def run_linear(job: Job) -> Result:
    """A linear layer by SGD on the features before the head; every image is seen in one view, without crops."""
    parts, settings = divide(job), SgdSettings()
    with bar("linear layer: epochs", total=settings.epochs, shown=job.options.progress) as advance:
        fit = train_linear(
            parts.training.features,
            parts.training_truth,
            classes=len(parts.classes),
            generator=torch.Generator().manual_seed(job.options.seed),
            settings=settings,
            tick=lambda: advance(1),
        )
    scores_NC = fit.scores(parts.test.features)
    return classified(
        "linear",
        zero_shot(scores_NC, parts.test_truth),
        title="Linear layer by SGD",
        pictures=parts.test,
        truth=parts.test_truth,
        classes=parts.classes,
        probabilities=lambda rows: scores_NC[rows].softmax(-1),
        options=job.options,
        facts=parts.facts | {"features": parts.test.features.shape[1], "epochs": settings.epochs, "lr": settings.lr},
        notes=parts.notes,
    )


def train_linear(
    features_NF: Tensor,
    truth: Truth,
    *,
    classes: int,
    generator: torch.Generator,
    settings: SgdSettings = SgdSettings(),
    tick: Callable[[], None] = lambda: None,
) -> Fit:
    """Weights ``(C, F)`` and biases by cross-entropy; a sample with K classes has 1 / K of each.

    The last batch of an epoch may be smaller. ``tick`` is called after each epoch. Raises `UserError` if the loss grows
    beyond bounds.
    """
    features = features_NF.float()
    target_NC = truth.mask(classes).float()
    target_NC /= target_NC.sum(1, keepdim=True)
    weight = settings.deviation * torch.randn(classes, features.shape[1], generator=generator)
    weight, bias = weight.requires_grad_(), torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.SGD([weight, bias], lr=settings.lr, momentum=settings.momentum)
    length = settings.epochs * math.ceil(len(features) / settings.batch)
    step = 0
    for _ in range(settings.epochs):
        for rows in torch.split(torch.randperm(len(features), generator=generator), settings.batch):
            optimiser.param_groups[0]["lr"] = settings.lr * (1 + math.cos(math.pi * step / length)) / 2
            loss = F.cross_entropy(F.linear(features[rows], weight, bias), target_NC[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            step += 1
        tick()
    if not bool(weight.isfinite().all()):
        raise UserError(
            f"the linear layer left all bounds at lr {settings.lr:g}: these features are too long for it (mean length "
            f"{float(features.norm(dim=1).mean()):.3g}); take --task probe, which has no rate"
        )
    return Fit(weight=weight.detach().double(), bias=bias.detach().double(), iterations=step, converged=True)
