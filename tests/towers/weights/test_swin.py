import pytest
import torch
import torchvision
from safetensors.torch import load_file
from transformers import SwinConfig, SwinModel

from original_towers import Swin, shake
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.weights import swin
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.published import Published, assembled

SIZES = {"depths": [2, 2], "num_heads": [2, 4]}


def loaded(state, kind):
    found = Checkpoint(place=f"a {kind} swin", state=state)
    settings = swin.settings(found, swin.names(kind, root=""), head="none")
    model = Published(origin=kind, image=settings, text=None, width=32, state={})
    rules = swin.rules(kind, root="", stages=swin.stages_of(settings))
    return model_of(assembled(found.state, model, rules=rules, unused=swin.unused(""), scale=False))


def pixels(size=224):
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def normalised(ours, images):
    return (images / 255 - ours.image.mean) / ours.image.std


def test_microsofts_merging_moves_to_the_next_stage():
    theirs = shake(Swin(size=56, width=16, depths=(2, 2), heads=(2, 4)))
    ours = loaded(theirs.state_dict(), "microsoft")
    with torch.no_grad():
        expected = theirs(normalised(ours, pixels(56)))
        assert torch.allclose(ours.image(pixels(56)).features, expected, atol=1e-5)


def test_transformers_features_are_the_same(tmp_path):
    theirs = shake(SwinModel(SwinConfig(embed_dim=16, image_size=224, window_size=7, **SIZES)))
    theirs.save_pretrained(tmp_path)
    ours = loaded(load_file(tmp_path / "model.safetensors"), "transformers")
    with torch.no_grad():
        expected = theirs(normalised(ours, pixels())).pooler_output
        assert torch.allclose(ours.image(pixels()).features, expected, atol=1e-5)


def test_torchvisions_features_are_the_same():
    theirs = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, window_size=[7, 7], stochastic_depth_prob=0.0, **SIZES
    )
    theirs = shake(theirs)
    ours = loaded(theirs.state_dict(), "torchvision")
    theirs.head = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(ours.image(pixels()).features, theirs(normalised(ours, pixels())), atol=1e-5)


def test_named_sizes_get_timms_names():
    with torch.device("meta"):
        state = torchvision.models.swin_s().state_dict()
    settings = swin.settings(Checkpoint(place="swin_s", state=state), swin.names("torchvision", root=""), head="none")
    assert (settings.name, settings.options) == ("swin_small_patch4_window7_224", {})


def test_a_checkpoint_without_stages_and_an_unknown_layout_are_refused():
    found = Checkpoint(place="nothing", state={"patch_embed.proj.weight": torch.zeros(16, 3, 4, 4)})
    with pytest.raises(UserError, match=r"layers\.0\.blocks\.0 is missing"):
        swin.settings(found, swin.names("microsoft", root=""), head="none")
    with pytest.raises(UserError, match="no layout of Swin"):
        swin.rules("keras", root="", stages=2)
