import pytest
import torch

from unicl.errors import UserError
from unicl.towers.weights.names import ROW, TABLE, TURNED, Rule, Unused, mismatch, shapes_differ, to_ours, to_theirs

RULES = (
    Rule(r"blocks\.(\d+)\.qkv\.(weight|bias)", r"layers.\1.{q,k,v}_proj.\2"),
    Rule(r"whole\.([qkv])", r"attn.in_proj#\1"),
    Rule(r"head\.weight", "proj", TURNED),
    Rule(r"token", "cls", ROW),
    Rule(r"places", "pos", TABLE),
    Rule(r"(norm\..*)", r"ln.\1"),
)
UNUSED = (Unused(r".*position_ids", "numbers in a row"), Unused(r"classifier\..*", "no tower has a classifier"))


def ours():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "blocks.0.qkv.weight": (6, 2),
        "blocks.0.qkv.bias": (6,),
        "blocks.1.qkv.weight": (6, 2),
        "blocks.1.qkv.bias": (6,),
        "whole.q": (2, 2),
        "whole.k": (2, 2),
        "whole.v": (2, 2),
        "head.weight": (3, 2),
        "token": (1, 1, 2),
        "places": (1, 5, 2),
        "norm.weight": (2,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def meta(state):
    return {name: value.to("meta") for name, value in state.items()}


def read(theirs, *, unused=UNUSED, wanted=None):
    return to_ours(theirs, wanted=meta(wanted or ours()), rules=RULES, unused=unused, source="x.pt")


def test_out_and_in_again_is_the_same():
    found, notes = read(to_theirs(ours(), rules=RULES, source="x.pt"))
    assert notes == ()
    assert list(found) == list(ours())
    for name, value in ours().items():
        assert torch.equal(found[name], value), name


def test_in_and_out_again_is_the_same():
    theirs = to_theirs(ours(), rules=RULES, source="x.pt")
    again = to_theirs(read(theirs)[0], rules=RULES, source="x.pt")
    assert set(again) == set(theirs)
    assert all(torch.equal(again[name], value) for name, value in theirs.items())


def test_each_change_is_what_it_says():
    mine = ours()
    theirs = to_theirs(mine, rules=RULES, source="x.pt")
    for k, third in enumerate("qkv"):
        assert torch.equal(theirs[f"layers.1.{third}_proj.weight"], mine["blocks.1.qkv.weight"][2 * k : 2 * k + 2])
        assert torch.equal(theirs[f"layers.1.{third}_proj.bias"], mine["blocks.1.qkv.bias"][2 * k : 2 * k + 2])
    assert torch.equal(theirs["attn.in_proj"], torch.cat([mine["whole.q"], mine["whole.k"], mine["whole.v"]]))
    assert torch.equal(theirs["proj"], mine["head.weight"].T)
    assert torch.equal(theirs["cls"], mine["token"][0, 0])
    assert torch.equal(theirs["pos"], mine["places"][0])
    assert torch.equal(theirs["ln.norm.weight"], mine["norm.weight"])
    assert len(theirs) == 2 * 6 + 5
    assert all(value.is_contiguous() for value in theirs.values())


EVERY = sorted(to_theirs(ours(), rules=RULES, source="x.pt"))


@pytest.mark.parametrize("name", EVERY)
def test_a_missing_entry_is_named_in_their_words(name):
    theirs = to_theirs(ours(), rules=RULES, source="x.pt")
    del theirs[name]
    with pytest.raises(UserError, match=rf"x\.pt does not fit .*1 missing \({name}\)"):
        read(theirs)


@pytest.mark.parametrize("name", EVERY)
def test_a_renamed_entry_is_named_twice(name):
    theirs = to_theirs(ours(), rules=RULES, source="x.pt")
    theirs[f"{name}_old"] = theirs.pop(name)
    with pytest.raises(UserError, match=rf"1 missing \({name}\) and 1 unexpected \({name}_old\)"):
        read(theirs)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("change", ["longer", "deeper"])
def test_an_entry_of_another_shape_is_named(name, change):
    theirs = to_theirs(ours(), rules=RULES, source="x.pt")
    value = theirs[name]
    theirs[name] = torch.cat([value, value[:1]]) if change == "longer" else value[..., None].expand(*value.shape, 2)
    with pytest.raises(UserError, match=r"x\.pt does not fit") as error:
        read(theirs)
    assert name in str(error.value)


def test_a_matrix_that_was_not_turned_is_named():
    theirs = to_theirs(ours(), rules=RULES, source="x.pt")
    theirs["proj"] = theirs["proj"].T
    with pytest.raises(UserError, match="proj is"):
        read(theirs)


def test_an_entry_that_nothing_explains_is_an_error():
    theirs = to_theirs(ours(), rules=RULES, source="x.pt") | {"mystery": torch.zeros(1)}
    with pytest.raises(UserError, match=r"1 unexpected \(mystery\)"):
        read(theirs)


def test_what_is_explained_is_counted_in_a_note():
    more = {"position_ids": torch.arange(5), "a.position_ids": torch.arange(5), "classifier.bias": torch.zeros(2)}
    found, notes = read(to_theirs(ours(), rules=RULES, source="x.pt") | more)
    assert set(found) == set(ours())
    assert sorted(notes) == [
        "left out 1 (classifier.bias): no tower has a classifier",
        "left out 2 (a.position_ids, position_ids): numbers in a row",
    ]


def test_an_explanation_must_match_the_whole_name():
    theirs = to_theirs(ours(), rules=RULES, source="x.pt") | {"my.classifier.bias": torch.zeros(2)}
    with pytest.raises(UserError, match=r"my\.classifier\.bias"):
        read(theirs)


def test_an_entry_that_a_rule_uses_is_used_even_if_it_could_be_explained():
    found, notes = read(to_theirs(ours(), rules=RULES, source="x.pt"), unused=(Unused(".*", "anything"),))
    assert notes == ()
    assert torch.equal(found["token"], ours()["token"])


def test_an_entry_of_ours_without_a_rule_has_no_place():
    with pytest.raises(UserError, match=r"x\.pt has no place for 'mystery'"):
        to_theirs(ours() | {"mystery": torch.zeros(1)}, rules=RULES, source="x.pt")
    with pytest.raises(UserError, match=r"x\.pt has no place for 'mystery'"):
        read({}, wanted={"mystery": torch.zeros(1)})


def test_a_rule_matches_the_whole_of_a_name():
    with pytest.raises(UserError, match=r"no place for 'head\.weight\.more'"):
        to_theirs({"head.weight.more": torch.zeros(2, 2)}, rules=RULES, source="x.pt")


def test_long_lists_are_cut():
    line = mismatch("x.pt", missing=[f"m{k}" for k in range(9)], left=["one"])
    assert "9 missing (m0, m1, m2, m3, ...) and 1 unexpected (one)" in line


def test_shapes_are_said_from_both_sides():
    assert "proj is (2, 3) there, (3, 2) here" in shapes_differ("x.pt", "proj", theirs=[2, 3], ours=torch.Size([3, 2]))
