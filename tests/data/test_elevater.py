import pytest
from cn_clip.eval import cvinw_zeroshot_templates as official

from pictures import picture
from unicl.data.elevater import LABELS, OF_CN_CLIP, labels_beside, own_names, own_prompts
from unicl.data.prompts import fill, language_of, prompt_set, read_names
from unicl.data.sources import load
from unicl.errors import UserError


def classes(folder, names, labels="飞机\n汽车\n鸟\n"):
    for name in names:
        (folder / "test" / name).mkdir(parents=True)
        (folder / "test" / name / "a.png").write_bytes(picture(len(name)))
    (folder / LABELS).write_text(labels, encoding="utf-8")
    return folder / "test"


def test_all_twenty_sets_have_chinese_prompts_of_ours():
    assert len(own_prompts()) == 20
    for sentences in own_prompts().values():
        assert len(set(sentences)) == len(sentences) >= 2
        assert all(sentence.count("{}") == 1 for sentence in sentences)
        assert language_of([fill(sentence, "猫") for sentence in sentences]) == "zh"


def test_named_sets_have_a_chinese_name_of_its_own_for_each_class():
    sizes = {name: len(names) for name, names in own_names().items()}
    assert sizes == {
        "zh-cifar-10": 10,
        "zh-cifar-100": 100,
        "zh-dtd": 47,
        "zh-eurosat": 10,
        "zh-fer-2013": 7,
        "zh-mnist": 10,
        "zh-resisc45": 45,
        "zh-voc-2007": 20,
    }
    for names in own_names().values():
        assert len(set(names.values())) == len(names)
        assert language_of(list(names.values())) == "zh"


@pytest.mark.parametrize("name", OF_CN_CLIP)
def test_chinese_clips_prompts_are_read_from_cn_clip(name):
    lists = getattr(official, f"{OF_CN_CLIP[name]}_templates")
    assert [fill(sentence, "猫") for sentence in prompt_set(name)] == [sentence("猫") for sentence in lists]


def test_the_set_for_all_others_has_183_sentences():
    assert len(prompt_set("elevater")) == 183


def test_folders_of_numbers_are_named_by_the_file_above_them(tmp_path):
    for number, names in enumerate((("0", "2"), ("000", "002"))):
        folder = classes(tmp_path / str(number), names)
        source = load(str(folder))
        assert [sample.labels for sample in source.samples] == [("飞机",), ("鸟",)]
        assert f"folders are numbers, and {LABELS} names their classes" in source.notes[0]
    assert labels_beside(folder, ["cat"]) is None


def test_a_number_without_a_name_is_an_error_and_equal_names_are_told(tmp_path):
    with pytest.raises(UserError, match=r"the label '007' is not in the class list"):
        load(str(classes(tmp_path / "a", ("007",))))
    source = load(str(classes(tmp_path / "b", ("0", "1"), labels="鹤\n鹤\n")))
    assert f"1 names in {LABELS} stand for several classes, which become one" in source.notes


def test_our_names_are_given_by_the_name_of_the_set(tmp_path):
    (tmp_path / "ship").mkdir()
    (tmp_path / "ship" / "a.png").write_bytes(picture())
    assert load(f"{tmp_path}?names=zh-cifar-10").samples[0].labels == ("船",)
    assert read_names(tmp_path.__class__("zh-mnist"))["7"] == "七"
    with pytest.raises(UserError, match="names=zh-cifar: there is no"):
        load(f"{tmp_path}?names=zh-cifar")
