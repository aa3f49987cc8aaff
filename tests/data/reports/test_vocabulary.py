"""Vocabularies of findings: those that come along, a user's own, and what is wrong with a file."""

import pytest

from unicl.data.reports.vocabulary import SAID, Terms, pattern, spread, vocabulary
from unicl.errors import UserError
from unicl.space import Finding

CHEXPERT = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)


def written(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def matched(phrases, text, **options):
    return [match.group() for match in pattern(phrases, **options).finditer(text)]


def test_the_built_in_vocabulary_has_the_14_columns_of_chexpert_in_their_order():
    found = vocabulary("chexpert")
    assert found.names == CHEXPERT
    assert found.nothing.despite == ("Support Devices",)
    sides = {"before", "after", "just before", "around", "ends", "ends absent", "none"}
    assert {cue.side for cue in found.cues} == sides
    assert {cue.says for cue in found.cues} == set(SAID.values())


def test_no_cue_stands_twice():
    words = [phrase for cue in vocabulary("chexpert").cues for phrase in spread(cue.words)]
    assert len(words) == len(set(words))


def test_a_file_of_names_and_terms_is_enough(tmp_path):
    found = vocabulary(written(tmp_path, "findings:\n  Fruit: [apple*, pear]\n  Tool:\n    terms: [hammer]\n"))
    assert found.findings == (Terms(name="Fruit", terms=("apple*", "pear")), Terms(name="Tool", terms=("hammer",)))
    assert found.names == ("Fruit", "Tool")
    assert found.nothing is None
    assert found.cues == vocabulary("chexpert").cues


def test_a_file_may_add_cues_and_a_name_for_nothing(tmp_path):
    text = (
        "findings: {Fruit: [apple], Tool: [hammer]}\n"
        "no finding: {name: Empty, despite: [Tool], others: [leaf]}\n"
        "cues: {absent: {before: [devoid of|from]}, ends: [whereas]}\n"
    )
    found = vocabulary(written(tmp_path, text))
    assert found.names == ("Empty", "Fruit", "Tool")
    own = found.cues[len(vocabulary("chexpert").cues) :]
    assert [(cue.words, cue.side, cue.says) for cue in own] == [
        ("whereas", "ends", Finding.UNMENTIONED),
        ("devoid of|from", "before", Finding.ABSENT),
    ]
    assert spread("devoid of|from") == ("devoid of", "devoid from")


def test_a_star_is_any_ending_a_bar_a_choice_and_dots_up_to_five_words():
    assert matched(["effusion*"], "Effusions and an effusion, no diffusion") == ["Effusions", "effusion"]
    assert matched(["air space|way disease"], "air-space disease, air  way disease") == [
        "air-space disease",
        "air  way disease",
    ]
    gap = ["heart ... enlarged"]
    assert matched(gap, "heart enlarged") == ["heart enlarged"]
    assert matched(gap, "The heart is now only very mildly enlarged.") == ["heart is now only very mildly enlarged"]
    assert matched(gap, "The heart is one two three four five enlarged.") == []
    assert matched(gap, "heart normal, liver enlarged") == []
    assert matched(gap, "heart normal but liver enlarged") == []
    assert pattern([]) is None


def test_the_longest_term_is_taken_and_a_cue_has_to_reach_its_last_part():
    found = pattern(["edema", "pulmonary edema", "heart ... enlarged"])
    assert found.search("pulmonary edema").group() == "pulmonary edema"
    match = found.search("the heart is not enlarged")
    assert match.group() == "heart is not enlarged"
    assert match.start(match.lastindex) == len("the heart is not ")
    assert matched(["heart ... normal"], "the heart is not normal", whole=True) == []


def test_signs_without_spaces_need_no_edge_and_a_gap_is_of_five_signs():
    found = pattern(["心影 ... 增大", "积液*"], language="zh")
    assert [match[0] for match in found.finditer("心影稍增大，见积液可能")] == ["心影稍增大", "积液"]
    assert not found.search("心影大小形态正常未见增大")
    assert pattern(["心影 ... 正常"], whole=True, language="zh").search("心影大小正常")
    assert not pattern(["心影 ... 正常"], whole=True, language="zh").search("心影不正常")
    assert pattern(["PICC"], language="zh").search("置入PICC管")
    assert not pattern(["PICC"], language="zh").search("PICCs")


def test_another_language_has_the_cues_of_its_file_alone(tmp_path):
    text = "language: DE\nfindings: {A: [a]}\ncues: {absent: {before: [kein]}, ends absent: [mit]}\n"
    found = vocabulary(written(tmp_path, text))
    assert found.language == "de"
    assert [(cue.words, cue.side) for cue in found.cues] == [("mit", "ends absent"), ("kein", "before")]


def test_only_some_findings_are_those_asked_for_and_near_names_are_proposed():
    found = vocabulary("chexpert")
    assert found.only(["edema", " Fracture"]).names == ("Edema", "Fracture")
    with pytest.raises(
        UserError, match="'chexpert' lacks the finding 'Edemas' .did you mean 'Edema'.*it has .*Pneumothorax"
    ):
        found.only(["Edemas"])


def test_a_vocabulary_that_is_not_there_names_near_ones(tmp_path):
    with pytest.raises(UserError, match="no vocabulary 'chexprt'.*did you mean 'chexpert'"):
        vocabulary("chexprt")
    written(tmp_path, "findings: {A: [a]}")
    with pytest.raises(UserError, match="did you mean 'mine.yaml'"):
        vocabulary(str(tmp_path / "mine.yml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("findings: {A: [a]", "line 1, column 18 is not YAML"),
        ("- a\n- b\n", "holds .*wanted is 'findings:'"),
        ("terms: {A: [a]}", "unknown entry 'terms'; known: findings"),
        ("findings:\n", "'findings' is missing"),
        ("findings: {A: a}", "findings: A is 'a'; wanted is a list of terms"),
        ("findings: {A: []}", "findings: A is \\[\\]; wanted is a list of words"),
        ("findings: {A: {term: [a]}}", "findings: A has the unknown entry 'term' .*did you mean 'terms'"),
        ("findings: {A: {absent: [a]}}", "findings: A: terms is missing"),
        ("findings: {A: [no]}", "findings: A holds False.*put them in quotes"),
        ("findings: {A: [3]}", "findings: A holds 3, but a text was wanted"),
        ("findings: {A: ['... large']}", "lacks a word at '...'"),
        ("findings: {A: ['*']}", "lacks a word at"),
        ("findings:\n  A: [a]\n  B: [b]\n  a: [c]\n", "line 4: 'a' stands there a second time"),
        ("findings: {A: [a]}\nno finding: {despite: [B]}", "despite names 'B', which is no finding here"),
        ("findings: {A: [a]}\nno finding: {name: A}", "'A' is among the findings too"),
        ("findings: {A: [a]}\ncues: [no]", "cues is .*wanted are absent, uncertain, apart, ends, ends absent, none"),
        ("findings: {A: [a]}\nlanguage: fr", "is in the language 'fr', and words that deny a finding"),
        ("findings: {A: [a]}\nlanguage: fr\ncues: {ends: [mais]}", "words that deny a finding"),
        ("findings: {A: [a]}\nlanguage: [fr]", "language holds \\['fr'\\], but a text was wanted"),
        ("findings: {A: [a]}\ncues: {absent: [without]}", "absent is .*lists called before, after"),
        ("findings: {A: [a]}\ncues: {absent: {front: [no]}}", "cues: absent has the unknown entry 'front'"),
    ],
)
def test_a_file_of_the_wrong_shape_says_where(tmp_path, text, said):
    with pytest.raises(UserError, match=f"mine.yaml.*{said}"):
        vocabulary(written(tmp_path, text))
