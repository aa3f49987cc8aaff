"""What sentences say of findings: negation, uncertainty, other times; and what several sentences say together."""

import sys

import pytest

from unicl.data.reports.findings import SETTLED, Extractor, Mention, resolve
from unicl.data.reports.vocabulary import vocabulary
from unicl.errors import UserError
from unicl.space import Finding

PRESENT, ABSENT, UNCERTAIN, UNMENTIONED = Finding.PRESENT, Finding.ABSENT, Finding.UNCERTAIN, Finding.UNMENTIONED
SENTENCES = {
    "Small left pleural effusion.": {"Pleural Effusion": PRESENT},
    "No pleural effusion or pneumothorax is seen.": {"Pleural Effusion": ABSENT, "Pneumothorax": ABSENT},
    "There is no evidence of focal consolidation, edema, or effusion.": {
        "Consolidation": ABSENT,
        "Edema": ABSENT,
        "Pleural Effusion": ABSENT,
    },
    "No pneumothorax, but a small effusion remains.": {"Pneumothorax": ABSENT, "Pleural Effusion": PRESENT},
    "Effusion has resolved.": {"Pleural Effusion": ABSENT},
    "A pneumothorax is not identified.": {"Pneumothorax": ABSENT},
    "The lungs are free of consolidation.": {"Consolidation": ABSENT},
    "Possible right lower lobe pneumonia.": {"Pneumonia": UNCERTAIN},
    "Opacity which may represent pneumonia.": {"Lung Opacity": PRESENT, "Pneumonia": UNCERTAIN},
    "Pneumonia cannot be excluded.": {"Pneumonia": UNCERTAIN},
    "Atelectasis versus infiltrate.": {"Atelectasis": UNCERTAIN, "Lung Opacity": UNCERTAIN},
    "No focal opacity to suggest pneumonia.": {"Lung Opacity": ABSENT, "Pneumonia": ABSENT},
    "No effusion, possible pneumonia.": {"Pleural Effusion": ABSENT, "Pneumonia": UNCERTAIN},
    "No change in the small pneumothorax.": {"Pneumothorax": PRESENT},
    "History of pneumonia.": {"Pneumonia": UNMENTIONED},
    "Mother had a pneumothorax.": {"Pneumothorax": UNMENTIONED},
    "If pneumonia is suspected, repeat the study.": {"Pneumonia": UNMENTIONED},
    "Evaluation for effusion is limited.": {"Pleural Effusion": UNMENTIONED},
    "The heart is mildly enlarged.": {"Cardiomegaly": PRESENT},
    "The heart is not enlarged.": {"Cardiomegaly": ABSENT},
    "Heart size is within normal limits.": {"Cardiomegaly": ABSENT},
    "Borderline heart size.": {"Cardiomegaly": UNCERTAIN},
    "Large pericardial effusion.": {"": PRESENT},
    "Pneumothorax suspected.": {"Pneumothorax": UNCERTAIN},
    "Suspected pneumothorax.": {"Pneumothorax": UNCERTAIN},
    "The left chest tube has been removed.": {"Support Devices": ABSENT},
    "No cardiomegaly with small pleural effusions.": {"Cardiomegaly": ABSENT, "Pleural Effusion": PRESENT},
    "No acute process with an effusion, without edema.": {"Pleural Effusion": PRESENT, "Edema": ABSENT},
    "Expanded lungs with no effusion.": {"Pleural Effusion": ABSENT},
    "No findings consistent with pneumonia or edema.": {"Pneumonia": ABSENT, "Edema": ABSENT},
    "Consolidation with effusion is not seen.": {"Consolidation": ABSENT, "Pleural Effusion": ABSENT},
    "Possible pneumonia with effusion.": {"Pneumonia": UNCERTAIN, "Pleural Effusion": UNCERTAIN},
    "The tip is in the lower SVC.": {"Support Devices": PRESENT},
    "Comparison is made with the prior study.": {},
    "": {},
}


@pytest.fixture(scope="module")
def words():
    return vocabulary("chexpert")


@pytest.fixture(scope="module")
def extractor(words):
    return Extractor(words)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_says_of_each_finding_what_a_reader_takes_from_it(extractor, sentence):
    assert {mention.finding: mention.value for mention in extractor(sentence)} == SENTENCES[sentence]


def test_capitals_do_not_count_and_places_are_those_of_the_words(extractor):
    sentence = "THERE IS NO PNEUMOTHORAX OR AIR-SPACE DISEASE."
    found = [(mention.finding, sentence[mention.start : mention.end], mention.cue) for mention in extractor(sentence)]
    assert found == [("Pneumothorax", "PNEUMOTHORAX", "NO"), ("Lung Opacity", "AIR-SPACE DISEASE", "NO")]
    (moved,) = (mention.moved(10) for mention in extractor("Pneumonia."))
    assert (moved.start, moved.end) == (10, 19)


def test_words_that_settle_the_matter_are_their_own_evidence(extractor):
    (mention,) = extractor("Heart size is normal.")
    assert (mention.value, mention.cue) == (ABSENT, SETTLED)


def test_other_things_are_mentions_of_no_finding(extractor):
    assert [(m.finding, m.value) for m in extractor("Calcified granuloma.")] == [("", PRESENT), ("", PRESENT)]
    assert [(m.finding, m.value) for m in extractor("No scoliosis.")] == [("", ABSENT)]


def test_present_goes_before_uncertain_and_uncertain_before_absent(words):
    def said(*values):
        mentions = [Mention(finding="Edema", value=value, start=0, end=1) for value in values]
        return dict(resolve(mentions, words))["Edema"]

    assert said(ABSENT, UNCERTAIN, PRESENT) is PRESENT
    assert said(ABSENT, UNCERTAIN) is UNCERTAIN
    assert said(UNMENTIONED, ABSENT) is ABSENT
    assert said(UNMENTIONED) is UNMENTIONED
    assert said() is UNMENTIONED


@pytest.mark.parametrize(
    ("finding", "value", "nothing"),
    [
        ("Edema", ABSENT, PRESENT),
        ("Edema", UNCERTAIN, UNMENTIONED),
        ("Edema", PRESENT, UNMENTIONED),
        ("Support Devices", PRESENT, PRESENT),
        ("", PRESENT, UNMENTIONED),
        ("", ABSENT, PRESENT),
    ],
)
def test_no_finding_is_there_if_no_other_is_but_for_devices(words, finding, value, nothing):
    found = resolve([Mention(finding=finding, value=value, start=0, end=1)], words)
    assert tuple(name for name, _ in found) == words.names
    assert dict(found)["No Finding"] is nothing


def test_findings_need_not_be_of_the_chest(tmp_path):
    path = tmp_path / "fruit.yaml"
    path.write_text(
        "findings:\n  Apple: [apple*]\n  Ripe: {terms: [ripe], absent: [green ... fruit]}\n"
        "cues: {absent: {before: [devoid of]}}\n"
    )
    extract = Extractor(vocabulary(str(path)))
    found = {mention.finding: mention.value for mention in extract("A green and hard fruit, devoid of apples.")}
    assert found == {"Ripe": ABSENT, "Apple": ABSENT}


CHINESE = """
language: zh
findings:
  气胸: [气胸]
  积液: [胸腔积液, 胸水*]
  心大: {terms: [心影 ... 增大], absent: [心影 ... 正常]}
  导管: [PICC]
cues:
  absent: {before: [未见, 无]}
  uncertain: {before: [考虑], after: [待排]}
  ends: [，]
"""


def test_a_vocabulary_of_a_script_without_spaces_brings_its_own_cues(tmp_path):
    (tmp_path / "zh.yaml").write_text(CHINESE, encoding="utf-8")
    extract = Extractor(vocabulary(str(tmp_path / "zh.yaml")))

    def said(sentence):
        return {sentence[each.start : each.end]: (each.finding, each.value, each.cue) for each in extract(sentence)}

    assert said("双肺未见气胸、胸腔积液，心影稍增大。") == {
        "气胸": ("气胸", ABSENT, "未见"),
        "胸腔积液": ("积液", ABSENT, "未见"),
        "心影稍增大": ("心大", PRESENT, ""),
    }
    assert said("气胸待排，右侧胸水可见") == {"气胸": ("气胸", UNCERTAIN, "待排"), "胸水": ("积液", PRESENT, "")}
    assert said("心影大小正常，置入PICC管。") == {
        "心影大小正常": ("心大", ABSENT, SETTLED),
        "PICC": ("导管", PRESENT, ""),
    }
    assert said("心影不正常。") == {}


def test_in_another_language_english_cues_say_nothing(tmp_path):
    (tmp_path / "de.yaml").write_text("language: de\nfindings: {A: [erguss]}\ncues: {absent: {before: [kein]}}\n")
    extract = Extractor(vocabulary(str(tmp_path / "de.yaml")))
    assert [mention.value for mention in extract("Kein Erguss")] == [ABSENT]
    assert [mention.value for mention in extract("No Erguss")] == [PRESENT]


def test_without_medspacy_the_message_says_how_to_install_it(words, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "medspacy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "medspacy", None)
    with pytest.raises(UserError, match=r"pip install 'unicl\[findings\]'"):
        Extractor(words)
