"""EfficientNets that end on their last stage, padded as Keras pads: what changes, and what does not."""

import pytest
import timm
import torch
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.keras import KerasConv, end_on_last_stage

SETTINGS = ImageSettings(name="tf_efficientnet_b0", size=64, pool="stage", head="none")


def noise(side, *, number=2):
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(0))


def lively(model):
    """Weights that do not shrink the states, so that two pictures differ at the end."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
    return model.eval()


@pytest.mark.parametrize("side", [7, 8, 289])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_convolution_of_stride_two_sees_the_zeros_that_keras_adds(side, kernel):
    conv = torch.nn.Conv2d(4, 4, kernel, stride=2, groups=2, bias=True)
    states = torch.randn(2, 4, side, side)
    before, after = kernel // 2 - 1, kernel // 2
    framed = torch.zeros(2, 4, side + before + after, side + before + after)
    framed[..., before : before + side, before : before + side] = states
    ours = KerasConv(conv)
    assert torch.equal(ours(states), conv(framed))
    assert ours(states).shape[-1] == side // 2
    assert ours.state_dict().keys() == conv.state_dict().keys()


@torch.no_grad()
def test_only_at_odd_sides_does_timm_pad_otherwise():
    own, changed = (lively(timm.create_model("tf_efficientnet_b0", num_classes=0)) for _ in range(2))
    end_on_last_stage(changed)
    for side, places in ((64, 2), (96, 3)):
        theirs = own.blocks(own.bn1(own.conv_stem(noise(side))))
        assert theirs.shape[-1] == places
        assert torch.allclose(changed(noise(side)), theirs.mean((2, 3)), atol=1e-6)
    theirs = own.blocks(own.bn1(own.conv_stem(noise(289))))
    ours = changed.blocks(changed.bn1(changed.conv_stem(noise(289))))
    assert (theirs.shape[-1], ours.shape[-1]) == (10, 9)
    cosines = F.cosine_similarity(theirs.mean((2, 3)), changed(noise(289)))
    assert float(cosines.max()) < 0.9999


@pytest.mark.parametrize(("name", "width"), [("tf_efficientnet_b7", 640), ("tf_efficientnet_l2", 1376)])
def test_a_tower_is_as_wide_as_its_last_stage_and_has_nothing_behind_it(name, width):
    with torch.device("meta"):
        tower = ImageTower(ImageSettings(name=name, size=289, pool="stage", head="none"), width=width)
    assert tower.feature_width == width
    behind = ("backbone.conv_head", "backbone.bn2", "backbone.classifier", "head")
    assert not [key for key in tower.state_dict() if key.startswith(behind)]


def test_numbers_and_gradients_are_the_same_in_either_memory_order():
    images = (255 * noise(65)).to(torch.uint8)
    tower = lively(ImageTower(SETTINGS, width=320))
    outcomes = []
    for inner in (True, False):
        tower.lay_out(inner)
        tower.zero_grad()
        whole = tower(images).whole
        whole[:, 0].sum().backward()
        outcomes.append((whole.detach(), tower.backbone.conv_stem.weight.grad.clone()))
    assert torch.allclose(outcomes[0][0], outcomes[1][0], atol=1e-5)
    assert torch.allclose(outcomes[0][1], outcomes[1][1], atol=1e-5)
    assert float(outcomes[0][1].abs().max()) > 0


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18", "vit_tiny_patch16_224"])
def test_other_models_are_refused_by_name_of_what_fits(name):
    with pytest.raises(UserError, match="tf_efficientnet_b7"):
        ImageTower(ImageSettings(name=name, size=64, pool="stage"), width=8)
