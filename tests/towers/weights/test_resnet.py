import pytest
import torch
import torchvision

from unicl.errors import UserError
from unicl.towers.weights import resnet
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.published import wanted
from unicl.towers.weights.swin import imagenet_frame

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "resnext101_64x4d",
)


def found(model):
    return Checkpoint(place="a file", state={f"cnn.{key}": value for key, value in model.state_dict().items()})


@pytest.mark.parametrize("name", NAMES)
def test_every_size_that_torchvision_publishes_gets_timms_name_and_shapes(name):
    with torch.device("meta"):
        checkpoint = found(torchvision.models.get_model(name))
    settings = resnet.settings(checkpoint, root="cnn.", head="none", frame=imagenet_frame(224))
    assert (settings.name, settings.options) == (name, {})
    width = checkpoint.shape("cnn.fc.weight")[1]
    shapes = wanted(image=settings, text=None, width=width, scale=False)
    theirs = {key.replace("cnn.", "image.backbone."): value.shape for key, value in checkpoint.state.items()}
    assert {key: value.shape for key, value in shapes.items()} == {k: v for k, v in theirs.items() if ".fc." not in k}


def test_other_depths_are_options():
    with torch.device("meta"):
        checkpoint = found(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 1]))
    settings = resnet.settings(checkpoint, root="cnn.", head="none", frame=imagenet_frame(224))
    assert (settings.name, settings.options["layers"]) == ("resnet50", (1, 2, 1, 1))
    assert resnet.recognises(checkpoint, root="cnn.")
    assert not resnet.recognises(checkpoint, root="")


def test_another_stem_is_refused():
    with torch.device("meta"):
        checkpoint = found(torchvision.models.resnet18())
    wrong = Checkpoint(place="a file", state={**checkpoint.state, "cnn.conv1.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(UserError, match=r"cnn\.conv1\.weight is \(64, 3, 3, 3\)"):
        resnet.settings(wrong, root="cnn.", head="none", frame=imagenet_frame(224))
