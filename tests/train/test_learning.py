import math
from itertools import product

import pytest
import torch

from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.train.learning import Learning, blocks_of, set_learning, shares_of, what_learns
from unicl.train.optim import OptimSettings, clip, make_optimiser, take_step


def image(name="test_vit", **more):
    torch.manual_seed(0)
    return ImageTower(ImageSettings(name=name, size=32, **more), width=8).train()


def text(name="bert", *, layers=3, **more):
    torch.manual_seed(0)
    settings = TextSettings(name=name, layers=layers, dim=16, heads=2, **more)
    return TextTower(settings, width=8, vocab_size=50, eos_id=2, pad_id=0).train()


def learning(tower):
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def pixels(number=4):
    return torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


TOKENS = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])


def embedded(tower):
    given = (pixels(),) if isinstance(tower, ImageTower) else (TOKENS, TOKENS != 0)
    return tower(*given).whole


def trained(tower, *, steps=3):
    """A few steps with much decay; the names of all entries of the state that have moved."""
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    optimiser = make_optimiser(tower, OptimSettings(weight_decay=0.5))
    for step in range(steps):
        optimiser.zero_grad()
        embedded(tower)[:, 0].sum().backward()
        take_step(optimiser, rate=0.1, seed=step)
    return {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}


def test_all_the_head_or_nothing_learns_and_it_can_be_said():
    for tower in (image(), text(), image("test_efficientnet"), text("clip")):
        everything = learning(tower)
        for part, wanted in {"head": {n for n in everything if n.startswith("head.")}, "none": set()}.items():
            set_learning(tower, Learning(part=part))
            assert learning(tower) == wanted
            assert what_learns(tower) == part
            assert tower.locked
            assert not any(module.training for module in tower.backbone.modules())
        set_learning(tower, Learning())
        assert learning(tower) == everything
        assert what_learns(tower) == "all"
        assert all(module.training for module in tower.modules())


@pytest.mark.parametrize("part", ["head", "none"])
def test_a_locked_tower_records_no_graph(part):
    for tower in (image(), text()):
        set_learning(tower, Learning(part=part))
        assert not (
            tower.look(pixels()) if isinstance(tower, ImageTower) else tower.look(TOKENS, TOKENS != 0)
        ).features.requires_grad
        assert embedded(tower).requires_grad == (part == "head")


NORMS = {"test_vit": "backbone.*norm*", "test_efficientnet": "backbone.*bn*", "resnet10t": "backbone.*bn*"}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("what", ["head", "blocks", "norms"])
def test_what_does_not_learn_is_bit_identical_after_training_buffers_included(name, what):
    asked = {"head": {"part": "head"}, "blocks": {"from_block": 2}, "norms": {"locked": (NORMS[name],)}}
    tower = image(name, drop_path=0.1)
    set_learning(tower, Learning(**asked[what]))
    held = {n for n, module in tower.named_modules() if not module.training}
    moved, buffers = trained(tower), {name for name, _ in tower.named_buffers()}
    assert moved - buffers == learning(tower)
    assert not {n for n in moved & buffers if n.rpartition(".")[0] in held}
    if what != "norms":
        assert bool(moved & buffers) == (what == "blocks" and name != "test_vit")


def test_the_first_blocks_and_the_tables_before_them_are_locked_as_in_a_slice():
    for tower, prefix in (
        (text(), "backbone.encoder.layer"),
        (text("clip"), "backbone.encoder.layers"),
        (image(), "backbone.blocks"),
    ):
        number = blocks_of(tower.backbone)[1]
        for first in (0, 1, 2, -1, -number):
            set_learning(tower, Learning(from_block=first))
            free = learning(tower)
            blocks = {k for k in range(number) if any(f"{prefix}.{k}." in n for n in free)}
            assert blocks == set(range(number)[first:])
            assert not any("embed" in n or "cls_token" in n for n in free)
            assert {n for n in free if n.startswith("head.")} == {"head.weight"}


@pytest.mark.parametrize(
    ("name", "number"), [("test_vit", 6), ("resnet10t", 4), ("test_efficientnet", 5), ("convnext_atto", 12)]
)
def test_blocks_are_those_that_timm_counts(name, number):
    found, blocks = blocks_of(image(name).backbone)
    assert blocks == number
    assert set(found.values()) == set(range(-1, number))


def test_locked_blocks_and_what_comes_before_them_do_not_drop_and_give_no_gradient():
    tower = image(drop_path=0.5, options={"pos_drop_rate": 0.5, "proj_drop_rate": 0.5})
    set_learning(tower, Learning(from_block=-1))
    seen = []
    tower.backbone.blocks[-2].register_forward_hook(lambda *each: seen.append(each[-1]))
    for _ in range(2):
        embedded(tower)
    assert torch.equal(*seen)
    assert not seen[0].requires_grad
    assert all(module.training for module in tower.backbone.blocks[-1].modules())
    tower.eval()
    tower.train()
    assert not tower.backbone.pos_drop.training
    assert not tower.backbone.blocks[0].training


def test_names_choose_what_learns():
    tower = image()
    set_learning(tower, Learning(only=("*.bias", "head.*"), locked=("backbone.blocks.0.*",)))
    free = learning(tower)
    assert free == {
        n for n, _ in tower.named_parameters() if (n.endswith(".bias") or n == "head.weight") and ".blocks.0." not in n
    }
    assert what_learns(tower) == "some"
    set_learning(tower, Learning(only=("head.*",)))
    assert what_learns(tower) == "head"
    assert tower.locked


def test_the_clipped_norm_is_that_of_what_learns():
    tower = image()
    set_learning(tower, Learning(from_block=-1))
    embedded(tower)[:, 0].sum().backward()
    grads = {n: p.grad for n, p in tower.named_parameters() if p.grad is not None}
    assert grads.keys() == learning(tower)
    wanted = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    assert float(clip(tower.parameters(), norm=None)) == pytest.approx(wanted, rel=1e-5)


def test_rates_are_slower_late_or_in_cycles():
    def factors(**given):
        return [Learning(**given).factor(k / 8) for k in range(8)]

    assert factors() == [1.0] * 8
    assert factors(rates=(0.1,)) == [0.1] * 8
    assert factors(rates=(0, 1)) == [0] * 4 + [1] * 4
    assert factors(rates=(0, 1, 0, 1)) == [0, 0, 1, 1] * 2
    assert Learning(rates=(0, 1)).factor(1.0) == 1


def test_a_ramp_is_a_sigmoid_between_the_factors():
    found = [Learning(rates=(0, 1), ramp=0.05).factor(k / 10) for k in range(10)]
    assert found == pytest.approx([1 / (1 + math.exp(-(k / 10 - 0.5) / 0.05)) for k in range(10)])
    assert found[0] > 0


def test_what_never_learns_in_a_stage_is_still():
    assert [
        Learning(**g).still for g in ({}, {"part": "head"}, {"part": "none"}, {"rates": (0, 0)}, {"rates": (0, 1)})
    ] == [False, True, True, True, False]
    assert [
        Learning(**g).changes for g in ({}, {"rates": (0, 1)}, {"rates": (0, 1), "ramp": 0.1}, {"rates": (0,)})
    ] == [False, True, False, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rates": ()}, "not factors"),
        ({"rates": (1, -1)}, "not factors"),
        ({"ramp": 2}, "not a share"),
        ({"part": "head", "from_block": 1}, "leave one"),
    ],
)
def test_settings_that_say_nothing_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Learning(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"from_block": 7}, r"not one of the 6 blocks of 'test_vit'.*0 to 5"),
        ({"only": ("blocks.*",)}, r"only: no parameter fits 'blocks\.\*'.*backbone"),
        ({"locked": ("heads.*",)}, r"locked: no parameter fits"),
    ],
)
def test_blocks_and_names_that_are_not_there_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        set_learning(image(), Learning(**given))


def test_all_nine_settings_of_lit_come_from_one_field_for_each_tower():
    for letters in product("LUu", repeat=2):
        for letter, tower in zip(letters, (image(), text()), strict=True):
            set_learning(tower, Learning(part="head" if letter == "L" else "all"))
            assert what_learns(tower) == ("head" if letter == "L" else "all")
            assert {n.partition(".")[0] for n in trained(tower)} == (
                {"head"} if letter == "L" else {"head", "backbone"}
            )


@pytest.mark.parametrize("tower", [image(), text(), image("test_efficientnet")], ids=["vit", "bert", "cnn"])
def test_rates_fall_from_the_head_to_the_words_or_patches_by_one_factor_a_block(tower):
    blocks, number = blocks_of(tower.backbone)
    shares = shares_of(tower, Learning(decay=0.5))
    assert {name.removeprefix("backbone.") for name in shares} == set(blocks)
    for name, block in blocks.items():
        assert shares[f"backbone.{name}"] == 0.5 ** (number - block)
    assert min(shares.values()) == 0.5 ** (number + 1)


def test_without_decay_and_where_only_a_head_learns_all_rates_are_one():
    tower = image()
    assert shares_of(tower, Learning()) == {}
    set_learning(tower, Learning(part="head", decay=0.5))
    assert shares_of(tower, Learning(part="head", decay=0.5)) == {}
    with pytest.raises(UserError, match=r"decay=1\.5 is no factor"):
        Learning(decay=1.5)


def test_a_step_moves_each_block_by_its_share_of_the_rate():
    tower, settings = image(), OptimSettings(weight_decay=0.0)
    before = {name: value.detach().clone() for name, value in tower.named_parameters()}
    shares = shares_of(tower, Learning(decay=0.5))
    optimiser = make_optimiser(tower, settings, shares=shares)
    embedded(tower)[:, 0].sum().backward()
    take_step(optimiser, rate=0.1, seed=0)
    moved = {name: float((value - before[name]).abs().max()) for name, value in tower.named_parameters()}
    # The first step of Adam is the rate itself, wherever there is a gradient.
    for name in ("backbone.blocks.0.mlp.fc1.weight", "backbone.blocks.5.mlp.fc1.weight", "head.weight"):
        assert math.isclose(moved[name], 0.1 * shares.get(name, 1.0), rel_tol=1e-2), name


def test_shares_of_one_are_bit_for_bit_the_plain_optimiser():
    states = []
    for shares in ({}, dict.fromkeys([name for name, _ in image().named_parameters()][::2], 1.0)):
        tower = image()
        optimiser = make_optimiser(tower, OptimSettings(weight_decay=0.5), shares=shares)
        for step in range(3):
            optimiser.zero_grad()
            embedded(tower)[:, 0].sum().backward()
            take_step(optimiser, rate=0.1, seed=step)
        states.append(tower.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
