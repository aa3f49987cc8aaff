import math

import pytest
import torch
from torch import nn

from unicl.errors import UserError
from unicl.evaluate.linear import SgdSettings, run_linear, train_linear
from unicl.evaluate.zeroshot import Truth


def crowd(size=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 6, generator=generator), torch.arange(size) % 3


def test_the_layer_is_torchs_sgd_with_momentum_along_a_cosine():
    features, labels = crowd()
    settings = SgdSettings(epochs=3, batch=16)
    fit = train_linear(
        features, Truth.of(labels), classes=3, generator=torch.Generator().manual_seed(5), settings=settings
    )
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(3, 6, generator=generator))
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=9)
    for _ in range(3):
        for rows in torch.randperm(40, generator=generator).split(16):
            optimiser.zero_grad()
            nn.functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimiser.step()
            schedule.step()
    assert fit.iterations == 9
    assert torch.allclose(fit.weight.float(), layer.weight, atol=1e-6)
    assert torch.allclose(fit.bias.float(), layer.bias, atol=1e-6)


def test_a_task_of_the_evaluation_says_its_settings(job):
    result = run_linear(job)
    assert result.scores[0].key == "linear/top1"
    assert result.facts["lr"] == 0.3
    assert math.isclose(result.scores[0].value, run_linear(job).scores[0].value)


def test_features_that_are_too_long_for_the_rate_say_so():
    features, labels = crowd()
    with pytest.raises(UserError, match=r"too long for it.*--task probe"):
        train_linear(features.double() * 1e30, Truth.of(labels), classes=3, generator=torch.Generator().manual_seed(0))
