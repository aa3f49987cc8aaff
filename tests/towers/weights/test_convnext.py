import pytest
import torch
import torchvision

from unicl.errors import UserError
from unicl.towers.weights import convnext
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.published import Published, assembled


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"])
def test_every_size_that_torchvision_publishes_gets_timms_name_and_all_its_tensors(name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    found = Checkpoint(place=name, state=state)
    settings = convnext.settings(found, root="")
    assert convnext.recognises(found, root="")
    assert (settings.name, settings.options) == (name, {})
    width = found.shape("classifier.0.weight")[0]
    model = Published(origin=name, image=settings, text=None, width=width, state={})
    read = assembled(state, model, rules=convnext.rules(""), unused=convnext.unused(""), scale=False)
    assert len(read.state) == len(state) - 2


def test_a_missing_stage_is_named():
    with torch.device("meta"):
        state = torchvision.models.convnext_tiny().state_dict()
    cut = {key: value for key, value in state.items() if not key.startswith("features.7.")}
    with pytest.raises(UserError, match=r"features\.7\.0\.block\.0\.bias is missing"):
        convnext.settings(Checkpoint(place="cut", state=cut), root="")
