import pytest

from unicl.data.prompts import prompt_set
from unicl.data.sources import load, load_all
from unicl.errors import UserError
from unicl.space import Finding


def test_each_prompt_of_a_set_is_a_text_whose_finding_is_its_class():
    source = load("gloria:4:1?format=prompts&weight=3")
    expected = prompt_set("gloria:4:1")
    said = [(name, text) for name, each in expected.items() for text in dict.fromkeys(each)]
    assert [(s.findings, s.captions) for s in source.samples] == [(((n, Finding.PRESENT),), (t,)) for n, t in said]
    assert len({s.id for s in source.samples}) == len(source.samples)
    assert all(s.image is None for s in source.samples)
    assert (source.format, source.weight) == ("prompts", 3)
    assert source.notes == ("each says one of 5 findings: " + ", ".join(expected),)


def test_prompts_of_a_file_are_texts_too_and_names_may_come_twice(tmp_path):
    (tmp_path / "mine.json").write_text('{"classes": {"Ripe": ["a ripe one", "a ripe one"], "Bruised": ["soft"]}}')
    sources = load_all(
        [f"{tmp_path}/mine.json?format=prompts", "chexpert:1?format=prompts", "chexpert:1?format=prompts"]
    )
    assert [len(source.samples) for source in sources] == [2, 14, 14]
    assert [source.name for source in sources] == ["mine.json", "chexpert:1", "chexpert:1#2"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("chexprt?format=prompts", "no prompts 'chexprt' .did you mean 'chexpert'"),
        ("en?format=prompts", "'en' fit any class, so that none says which finding.*give gloria, chexpert"),
    ],
)
def test_prompts_that_say_no_finding_are_refused(typed, message):
    with pytest.raises(UserError, match=message):
        load(typed)
