import pytest
import timm
import torch
import torchvision

from unicl.errors import UserError
from unicl.towers.weights import vit
from unicl.towers.weights.checkpoint import Checkpoint

VIT = {"patch_size": 8, "embed_dim": 128, "depth": 2, "img_size": 32, "num_classes": 0}


def found(**options):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", **VIT, num_heads=2, **options)
    return Checkpoint(place="a file", state={f"backbone.{key}": value for key, value in model.state_dict().items()})


def test_timms_names_tell_the_tower():
    checkpoint = found(mlp_ratio=3.0, init_values=1e-5)
    settings = vit.timm_settings(checkpoint, root="backbone.")
    assert vit.is_timm(checkpoint, root="backbone.")
    assert not vit.is_timm(checkpoint, root="")
    assert (settings.size, settings.options["num_heads"], settings.options["depth"]) == (32, 2, 2)
    assert (settings.options["mlp_ratio"], settings.options["init_values"]) == (3.0, 1e-5)


@pytest.mark.parametrize(
    ("options", "pool", "normed"),
    [
        ({}, "token", False),
        ({"class_token": False, "global_pool": "avg"}, "avg", True),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "avg", False),
    ],
)
def test_how_it_pools_is_read_from_its_norms_and_token(options, pool, normed):
    settings = vit.timm_settings(found(**options), root="backbone.")
    assert (settings.options["global_pool"], settings.options["fc_norm"]) == (pool, normed)


def test_the_number_of_heads_can_be_said():
    assert vit.timm_settings(found(), root="backbone.", heads=4).options["num_heads"] == 4
    with pytest.raises(UserError, match="make no 3 heads"):
        vit.timm_settings(found(), root="backbone.", heads=3)


def test_positions_without_their_token_are_named():
    checkpoint = found()
    state = {key: value for key, value in checkpoint.state.items() if key != "backbone.cls_token"}
    with pytest.raises(UserError, match=r"backbone\.cls_token is missing"):
        vit.timm_settings(Checkpoint(place="a file", state=state), root="backbone.")


def test_torchvisions_old_and_new_names_of_the_mlp_are_known():
    with torch.device("meta"):
        model = torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=128, mlp_dim=192
        )
    new = model.state_dict()
    old = {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for k, v in new.items()}
    for state in (new, old):
        checkpoint = Checkpoint(place="a file", state=state)
        assert vit.is_torchvision(checkpoint, root="")
        assert vit.torchvision_settings(checkpoint, root="").options["mlp_ratio"] == 1.5
        theirs = " ".join(rule.theirs for rule in vit.torchvision_rules(checkpoint, root=""))
        assert ("mlp.linear_1" in theirs, "mlp.0" in theirs) == (state is old, state is new)
