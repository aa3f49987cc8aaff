import numpy as np
import pytest
import timm
import torch

from flax_names import image_arrays, scanned
from original_towers import shake
from unicl.errors import UserError
from unicl.towers.weights import flax_vit
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import to_ours
from unicl.towers.weights.published import wanted

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.5}


def arrays(**options):
    model = shake(timm.create_model("vit_base_patch16_224", num_classes=0, **SIZES, **options))
    found = image_arrays(model, root="")
    return model, Checkpoint(place="a file", state={key: torch.from_numpy(value) for key, value in found.items()})


def read(found):
    settings = flax_vit.image_settings(found, root="", head="none")
    shapes = wanted(image=settings, text=None, width=32, scale=False)
    return to_ours(found.state, wanted=shapes, rules=flax_vit.image_rules(found, root=""), source="a file")


def test_the_sizes_are_read_from_the_shapes():
    settings = flax_vit.image_settings(arrays()[1], root="", head="none")
    options = settings.options
    assert (settings.size, options["patch_size"], options["embed_dim"], options["depth"]) == (32, 8, 32, 3)
    assert (options["num_heads"], options["mlp_ratio"], options["class_token"]) == (4, 2.5, True)
    assert (options["act_layer"], options["no_embed_class"]) == ("gelu_tanh", False)


def test_a_token_behind_the_positions_has_none():
    options = flax_vit.image_settings(arrays(no_embed_class=True)[1], root="", head="none").options
    assert (options["class_token"], options["no_embed_class"], options["global_pool"]) == (True, True, "token")


def test_every_tensor_finds_its_place():
    model, found = arrays()
    state, notes = read(found)
    assert notes == ()
    assert all(torch.equal(state[f"image.backbone.{key}"], value) for key, value in model.state_dict().items())


def test_blocks_of_a_scan_are_taken_apart():
    found = {key: value.numpy() for key, value in arrays()[1].state.items()}
    stacked = {key: torch.from_numpy(value) for key, value in scanned(found).items()}
    apart = flax_vit.unrolled(stacked)
    assert set(apart) == set(found)
    assert all(np.array_equal(apart[key].numpy(), value) for key, value in found.items())


def test_both_ways_to_number_the_parts_of_a_block_are_known():
    state = {"Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": torch.zeros(1)}
    assert flax_vit.numbers_of(Checkpoint(place="old", state=state), "") == (1, 2, 3)
    assert flax_vit.numbers_of(arrays()[1], "") == (0, 1, 0)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("embedding/kernel", (8, 8, 3), r"embedding/kernel is \(8, 8, 3\), not \(P, P, 3, F\)"),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel", (32, 32), r"query/kernel is"),
        ("pos_embedding", (1, 18, 32), r"pos_embedding is \(1, 18, 32\)"),
    ],
)
def test_shapes_that_make_no_tower_are_named(name, shape, said):
    found = arrays()[1]
    wrong = Checkpoint(place="a file", state={**found.state, name: torch.zeros(shape)})
    with pytest.raises(UserError, match=said):
        read(wrong)
