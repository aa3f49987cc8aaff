"""Templates and class names as data."""

import json
import sys
from pathlib import Path

import open_clip
import pytest
import regex

from unicl.data.prompts import OWN, fill, language_of, prompt_set, read_names, sentences_for, set_names, templates
from unicl.errors import UserError


@pytest.mark.parametrize(
    ("name", "least", "most"), [("en", 24, 30), ("en-short", 4, 6), ("zh", 18, 24), ("zh-short", 4, 5)]
)
def test_our_sets_are_whole_sentences_without_repeats(name: str, least: int, most: int) -> None:
    lines = templates(name)
    assert least <= len(lines) <= most
    assert len(set(lines)) == len(lines)
    assert all(line.count("{}") == 1 and line == line.strip() for line in lines)
    chinese = [line for line in lines if regex.search(r"\p{Han}", line)]
    assert len(chinese) >= len(lines) - 2 if name.startswith("zh") else not chinese


def test_clips_templates_are_read_from_open_clip() -> None:
    lines = templates("clip80")
    assert len(lines) == 80
    assert [fill(line, "dog") for line in lines] == [
        template("dog") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]


def test_unicl_adds_the_bare_name_to_clips_templates() -> None:
    assert templates("unicl81") == (*templates("clip80"), "{}.")


def test_clips_templates_without_open_clip_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'unicl\[compat\]'"):
        templates("clip80")
    assert templates("en")


def test_wukongs_templates_are_read_from_cn_clip_with_the_two_that_stand_twice() -> None:
    lines = templates("wukong80")
    assert len(lines) == 80
    assert {line for line in lines if lines.count(line) == 2} == {"{}的裁剪照片。", "{}的涂鸦照。"}
    assert len(set(lines)) == 78
    assert all(line.endswith("。") and line.count("{}") == 1 for line in lines)


def test_wukongs_templates_without_cn_clip_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cn_clip.eval.imagenet_zeroshot_templates", None)
    with pytest.raises(UserError, match="pip install cn-clip"):
        templates("wukong80")


def test_every_named_set_can_be_read() -> None:
    for name in set_names():
        found = prompt_set(name)
        assert all(found.values()) if isinstance(found, dict) else found


def test_class_prompts_fit_only_their_classes() -> None:
    found = prompt_set("gloria")
    assert sentences_for(found, "pleural_effusion") == sentences_for(found, "Pleural Effusion")
    with pytest.raises(UserError, match="none for the class 'Pneumonia'.*they know Atelectasis, Cardiomegaly"):
        sentences_for(found, "Pneumonia")
    with pytest.raises(UserError, match="belong to classes of their own"):
        templates("gloria")
    assert sentences_for(("a {}",), "Pneumonia") == ("a {}",)


def test_some_of_a_set_are_drawn_by_a_seed() -> None:
    few = prompt_set("gloria:5")
    assert isinstance(few, dict)
    assert {len(several) for several in few.values()} == {5}
    whole = prompt_set("gloria")
    assert all(set(several) <= set(whole[name]) for name, several in few.items())
    assert few == prompt_set("gloria:5") == prompt_set("gloria:5:0")
    assert few != prompt_set("gloria:5:1")
    assert prompt_set("en:1000") == templates("en")
    assert len(set(prompt_set("filip:7:3"))) == 7
    with pytest.raises(UserError, match="ask for 0 sentences"):
        prompt_set("gloria:0")
    with pytest.raises(UserError, match="no prompts 'glria' .did you mean 'gloria'"):
        prompt_set("glria:5")


def test_components_and_class_prompts_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"prefix": ["a sketch of a"], "suffix": ["none", "Nice"]}))
    assert prompt_set(str(tmp_path / "own.json")) == ("a sketch of a {}.", "a sketch of a {}. Nice.")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": {"cat": ["a cat", "my {}"]}}))
    assert prompt_set(str(tmp_path / "classes.json")) == {"cat": ("a cat", "my {}")}
    assert prompt_set(f"{tmp_path / 'classes.json'}:1")["cat"][0] in ("a cat", "my {}")


def test_templates_come_from_text_and_json_files(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("\ufeffa sketch of {}\n\n一张{}的素描\n", encoding="utf-8")
    (tmp_path / "own.json").write_text(json.dumps(["a sketch of {}"]), encoding="utf-8")
    assert templates(str(tmp_path / "own.txt")) == ("a sketch of {}", "一张{}的素描")
    assert templates(str(tmp_path / "own.json")) == ("a sketch of {}",)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("own.txt", "a sketch of {}\na sketch\n", r"'a sketch' has no \{\}"),
        ("own.txt", "\n", "holds no templates"),
        ("own.json", '"{}"', "holds a JSON str, but a list of templates or an object was wanted"),
        ("own.json", '{"a": "{}"}', "there is no component 'a'"),
        ("own.json", '{"classes": {"a": ["b"]}, "prefix": []}', "beside 'classes' stands 'prefix'"),
        ("own.json", "[1]", r"1 has no \{\}"),
        ("own.json", "[", "is not JSON"),
    ],
)
def test_a_bad_template_file_says_what_is_wrong(tmp_path: Path, file: str, content: str, reason: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=reason):
        templates(str(tmp_path / file))


def test_an_unknown_set_suggests_a_near_one() -> None:
    with pytest.raises(UserError, match="did you mean 'clip80'"):
        templates("clip08")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("great white shark, white shark", "a photo of great white shark white shark."),
        ("apple_pie", "a photo of apple pie."),
        ("fish+chips", "a photo of fish chips."),
        ("{braces}", "a photo of {braces}."),
        ("红苹果", "a photo of 红苹果."),
    ],
)
def test_names_are_cleaned_as_unicl_does(name: str, wanted: str) -> None:
    assert fill("a photo of {}.", name) == wanted


def test_the_language_of_names_goes_by_the_larger_part() -> None:
    assert language_of(["苹果", "狗", "T恤", "dog"]) == "zh"
    assert language_of(["apple", "dog", "狗"]) == "en"
    assert language_of(["りんごの木", "猫カフェ"]) == "en"
    assert language_of([]) == "en"
    assert set(map(language_of, (["狗"], ["dog"]))) <= set(OWN)


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("n.txt", "tench\ngreat white shark\n\n", {"0": "tench", "1": "great white shark"}),
        ("n.txt", "n01\ttench\nn02\t鲨鱼\r\n", {"n01": "tench", "n02": "鲨鱼"}),
        ("n.json", '["tench", "鲨鱼"]', {"0": "tench", "1": "鲨鱼"}),
        ("n.json", '{"7": "tench", "x": " shark "}', {"7": "tench", "x": "shark"}),
    ],
)
def test_class_names_are_read_from_text_and_json(
    tmp_path: Path, file: str, content: str, wanted: dict[str, str]
) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert read_names(tmp_path / file) == wanted


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("n.txt", b"a\tb\nc\n", "line 2 has no tab"),
        ("n.txt", b"a\n\nb\n", "label '1' is ''"),
        ("n.txt", b"x\ta\nx\tb\n", "label 'x' stands there twice"),
        ("n.txt", b"", "no class names"),
        ("n.txt", b"caf\xe9\n", "not UTF-8"),
        ("n.json", b'{"0": ["n01", "tench"]}', "a text was wanted"),
        ("n.json", b"3", "a list or an object"),
    ],
)
def test_a_bad_names_file_says_what_is_wrong(tmp_path: Path, file: str, content: bytes, reason: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_names(tmp_path / file)


def test_a_missing_names_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_names(tmp_path / "names.txt")
