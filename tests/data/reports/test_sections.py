"""Reports by their headings, their paragraphs and sentences."""

import pytest

from unicl.data.reports.sections import paragraphs, report_of, sections
from unicl.data.reports.sentences import places

READ = ("findings", "impression")
WRAPPED = """                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  Fever, rule out pneumonia.

 FINDINGS:  The heart is mildly enlarged and the mediastinal contours are
 stable.  There is no effusion.

 Bones are intact

 IMPRESSION:

 1. Mild cardiomegaly.
 2. No pneumonia, as discussed with Dr. Smith at
 3 p.m. today.
"""


def said(text):
    return [text[start:end] for start, end in places(text)]


def test_a_report_is_read_by_its_headings_and_its_wrapped_lines_are_joined():
    report = report_of(WRAPPED.encode(), id="a.txt")
    assert [part.name for part in report.sections] == ["", "examination", "indication", "findings", "impression"]
    text = report.text(READ)
    assert text.splitlines() == [
        "The heart is mildly enlarged and the mediastinal contours are stable. There is no effusion.",
        "Bones are intact",
        "1. Mild cardiomegaly.",
        "2. No pneumonia, as discussed with Dr. Smith at 3 p.m. today.",
    ]
    assert said(text) == [
        "The heart is mildly enlarged and the mediastinal contours are stable.",
        "There is no effusion.",
        "Bones are intact",
        "Mild cardiomegaly.",
        "No pneumonia, as discussed with Dr. Smith at 3 p.m. today.",
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("FINDINGS: Clear. IMPRESSION: Normal.", ["findings", "impression"]),
        ("Findings: clear\nConclusion: normal", ["findings", "impression"]),
        ("FINDINGS AND IMPRESSION: Clear.", ["findings and impression"]),
        ("临床诊断：肺炎\n影像所见：双肺清晰。\n诊断意见: 未见异常。", ["indication", "findings", "impression"]),
        ("REASON FOR EXAM: cough\nWET READ: clear\r\nHISTORY: none", ["indication", "wet read", "indication"]),
        ("The heart is normal. Ratio 12:33.", [""]),
        ("The impression: all is well", [""]),
        ("", []),
    ],
)
def test_headings_are_known_words_or_capitals_at_the_start_of_a_line(text, names):
    assert [part.name for part in sections(text)] == names


def test_a_heading_of_two_names_is_both_and_a_report_without_the_sections_is_read_but_for_what_was_asked():
    both = report_of(b"FINDINGS AND IMPRESSION: Clear.", id="a.txt")
    assert both.has(["impression"])
    assert both.text(["impression"]) == "Clear."
    other = report_of(b"INDICATION: Pneumonia?\nNOTE: Clear lungs.", id="b.txt")
    assert not other.has(READ)
    assert other.text(READ) == "Clear lungs."
    assert report_of(b"All clear.", id="c.txt").text(READ) == "All clear."


def test_lines_are_joined_only_if_the_page_ended_them():
    assert paragraphs("Heart normal\nLungs clear\n\nBones\nintact") == "Heart normal\nLungs clear\nBones intact"
    assert paragraphs("- one\n- two\n  more") == "- one\n- two more"
    assert paragraphs("双肺清晰\n心影增大") == "双肺清晰\n心影增大"
    assert paragraphs("双肺清晰，" * 8 + "胸腔积\n液少许") == "双肺清晰，" * 8 + "胸腔积液少许"
