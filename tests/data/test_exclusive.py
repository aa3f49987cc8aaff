from collections import Counter

import pytest

from radiographs import write_chexpert
from unicl.data.exclusive import LAYOUTS, Choice, choice_of, exclusive, single
from unicl.data.formats.chexpert import FINDINGS
from unicl.data.sources import load
from unicl.errors import UserError
from unicl.space import Finding, Sample

VALUES = {1: Finding.PRESENT, 0: Finding.ABSENT, -1: Finding.UNCERTAIN, None: Finding.UNMENTIONED}


def sample(number, *values, names=("A", "B", "C")):
    findings = tuple((name, VALUES[value]) for name, value in zip(names, values))
    return Sample(id=str(number), image=b"%d" % number, findings=findings)


def test_one_finding_present_and_the_others_absent_or_not_mentioned():
    assert single(sample(0, 1, 0, None)) == "A"
    assert single(sample(1, None, 1, None)) == "B"
    assert single(sample(2, 1, 1, 0)) is None
    assert single(sample(3, 0, None, 0)) is None


def test_an_uncertain_finding_leaves_an_image_out():
    assert single(sample(0, 1, -1, 0)) is None
    assert single(sample(1, -1, 0, 0)) is None
    samples = [sample(0, 1, -1, 0), sample(1, 1, 0, 0)]
    assert [one.id for one in exclusive(samples, Choice(), seed=0, where="x")] == ["1"]


def test_as_many_of_each_are_drawn_by_the_seed_in_the_order_of_the_data():
    samples = [sample(k, *[int(k % 3 == c) for c in range(3)]) for k in range(90)]
    found = exclusive(samples, Choice(most=7), seed=3, where="x")
    assert Counter(one.labels for one in found) == {("A",): 7, ("B",): 7, ("C",): 7}
    assert [int(one.id) for one in found] == sorted(int(one.id) for one in found)
    assert len({one.id for one in found}) == 21
    assert found == exclusive(samples, Choice(most=7), seed=3, where="x")
    assert found != exclusive(samples, Choice(most=7), seed=4, where="x")
    assert all(one.labels == (single(one),) for one in found)


def test_every_image_of_a_class_is_drawn_as_often():
    samples = [sample(k, 1, names=("A",)) for k in range(10)]
    drawn = Counter(one.id for seed in range(2000) for one in exclusive(samples, Choice(most=3), seed=seed, where="x"))
    # 600 each; the deviation of a count is 20.5.
    assert all(abs(count - 600) < 5 * 20.5 for count in drawn.values())


def test_too_few_images_say_how_many_there_are():
    samples = [sample(0, 1, 0, 0), sample(1, 0, 1, 0), sample(2, 0, 1, 0)]
    with pytest.raises(UserError, match=r"too few images that show one finding alone \(2 of each wanted\): A 1, C 0;"):
        exclusive(samples, Choice(most=2), seed=0, where="x.csv")
    assert len(exclusive(samples, Choice(), seed=0, where="x.csv")) == 3
    with pytest.raises(UserError, match=r"too few images that show one finding alone \(some of each wanted\)"):
        exclusive([sample(0, 1, 1, 0)], Choice(), seed=0, where="x.csv")


def test_findings_that_are_missing_or_unknown_are_named():
    with pytest.raises(UserError, match="only= needs findings, and x.csv has none"):
        exclusive([Sample(id="a", image=b"a")], Choice(most=1), seed=0, where="x.csv")
    with pytest.raises(UserError, match="x.csv has no finding 'Atelectasis' .did you mean 'Atelectases'"):
        exclusive([sample(0, 1, names=("Atelectases",))], choice_of("5x1"), seed=0, where="x.csv")


@pytest.mark.parametrize("typed", ["", "0", "7x200", "5x0", "many", "-3", "2.5", "ALL"])
def test_what_is_no_number_of_images_is_refused(typed):
    with pytest.raises(UserError, match="write only=200, only=all, or a layout: 5x200 and 8x200"):
        choice_of(typed)


def test_the_layouts_are_those_of_the_papers():
    assert choice_of("5x200") == Choice(classes=LAYOUTS[5], most=200)
    assert choice_of("200") == Choice(classes=None, most=200)
    assert set(LAYOUTS[5]) < set(FINDINGS)
    assert set(LAYOUTS[8]) < set(FINDINGS)
    assert [len(names) for names in LAYOUTS.values()] == [5, 8]


def test_a_query_gives_the_images_with_their_finding_as_label(tmp_path):
    studies = [{name: 1.0} for name in FINDINGS for _ in range(3)]
    studies += [{"Edema": 1.0, "Pneumonia": -1.0}, {"Edema": 1.0, "Fracture": 1.0}, {}]
    table = write_chexpert(tmp_path, studies, views=("frontal",))
    for layout, classes in LAYOUTS.items():
        source = load(f"{table}?only={layout}x2&seed=1")
        assert Counter(one.labels for one in source.samples) == {(name,): 2 for name in classes}
        assert source.notes[-1] == f"only={layout}x2, seed 1: {2 * layout} of 45, each of one finding, its label"
    few = load(f"{table}?findings=Edema,Fracture&only=3")
    assert Counter(one.labels for one in few.samples) == {("Edema",): 3, ("Fracture",): 3}
    with pytest.raises(UserError, match=r"Atelectasis 3, Cardiomegaly 3, Consolidation 3, Edema 3, Pleural Effusion 3"):
        load(f"{table}?only=5x200")
    with pytest.raises(UserError, match="seed= belongs to only="):
        load(f"{table}?seed=1")
    with pytest.raises(UserError, match="seed='x' is not a whole number"):
        load(f"{table}?only=1&seed=x")
