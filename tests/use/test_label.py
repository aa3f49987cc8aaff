"""From reports to a table of findings and a table of evidence."""

import csv

import pytest
from PIL import Image
from rich.console import Console

from unicl.data.reports.findings import Extractor
from unicl.data.reports.sections import report_of
from unicl.data.reports.vocabulary import vocabulary
from unicl.data.sources import load
from unicl.errors import UserError
from unicl.space import Finding
from unicl.use.label import CELLS, SPEAKING, Settings, evidence_path, label, rows_of, show

REPORTS = {
    "1.txt": "INDICATION: Pneumonia?\nFINDINGS: The heart is enlarged. No effusion.\nIMPRESSION: Possible edema.",
    "2.txt": "FINDINGS: Lungs are clear.\n\nIMPRESSION: Normal chest.",
    "3.txt": "FINDINGS: 12.",
    "4.xml": "<eCitation><AbstractText Label='FINDINGS'>Effusion, no edema.</AbstractText></eCitation>",
    "5.xml": "<eCitation>",
}


@pytest.fixture(scope="module")
def chexpert():
    return Settings(vocabulary=vocabulary("chexpert"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "reports").mkdir()
    for name, text in REPORTS.items():
        (tmp_path / "reports" / name).write_text(text)
    return tmp_path / "reports"


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_a_report_with_the_cells_of_chexpert(folder, tmp_path, chexpert):
    summary = label(str(folder), tmp_path / "new" / "f.csv", settings=chexpert)
    first, second, fourth = table(tmp_path / "new" / "f.csv")
    assert list(first)[:4] == ["id", "text", "finding:No Finding", "finding:Enlarged Cardiomediastinum"]
    assert first["id"] == "1.txt"
    assert first["text"] == "The heart is enlarged. No effusion.\nPossible edema."
    cells = {name.removeprefix("finding:"): cell for name, cell in first.items() if cell and ":" in name}
    assert cells == {"Cardiomegaly": "1", "Pleural Effusion": "0", "Edema": "-1"}
    assert second["finding:No Finding"] == "1"
    assert (fourth["finding:Pleural Effusion"], fourth["finding:Edema"]) == ("1", "0")
    assert (summary.reports, summary.rows, summary.unread, summary.silent) == (4, 3, 1, ["3.txt"])
    assert summary.counts["Edema"] == {Finding.UNCERTAIN: 1, Finding.UNMENTIONED: 1, Finding.ABSENT: 1}
    assert [note.split(":")[0] for note in summary.notes()] == [
        "reports that cannot be read",
        "reports without a sentence, left out",
    ]
    listed = (tmp_path / "new" / "f.quarantine.jsonl").read_text().splitlines()
    assert [line.split('"')[3] for line in listed] == ["5.xml", "3.txt"]


def test_each_decision_has_its_words_in_the_text_and_what_decided(folder, tmp_path, chexpert):
    out = tmp_path / "f.csv"
    label(str(folder), out, settings=chexpert)
    texts = {row["id"]: row["text"] for row in table(out)}
    evidence = table(evidence_path(out))
    for row in evidence:
        assert texts[row["id"]][int(row["start"]) : int(row["end"])] == row["words"]
        assert row["words"] in row["sentence"] in texts[row["id"]]
    assert [(row["finding"], row["value"], row["words"], row["modifier"]) for row in evidence[:3]] == [
        ("Cardiomegaly", "1", "heart is enlarged", ""),
        ("Pleural Effusion", "0", "effusion", "No"),
        ("Edema", "-1", "edema", "Possible"),
    ]


def test_a_row_a_sentence_has_the_words_at_their_place_in_it(folder, tmp_path, chexpert):
    out = tmp_path / "f.csv"
    settings = Settings(vocabulary=chexpert.vocabulary, by="sentence")
    label(str(folder), out, settings=settings)
    rows = table(out)
    assert [row["id"] for row in rows] == ["1.txt#1", "1.txt#2", "1.txt#3", "2.txt#1", "2.txt#2", "4.xml#1"]
    assert [row["finding:Edema"] for row in rows] == ["", "", "-1", "", "", "0"]
    evidence = table(evidence_path(out))
    assert evidence[2]["report"] == "1.txt"
    assert rows[2]["text"][int(evidence[2]["start"]) : int(evidence[2]["end"])] == "edema"


def test_short_sentences_get_no_row_if_asked(folder, tmp_path, chexpert):
    settings = Settings(vocabulary=chexpert.vocabulary, by="sentence", least_words=3)
    label(str(folder), tmp_path / "f.csv", settings=settings)
    assert [row["id"] for row in table(tmp_path / "f.csv")] == ["1.txt#1", "2.txt#1", "4.xml#1"]
    whole = Settings(vocabulary=chexpert.vocabulary, least_words=3)
    with pytest.raises(UserError, match="each row is a report; add --by sentence"):
        label(str(folder), tmp_path / "g.csv", settings=whole)


def test_the_table_is_read_back_as_texts_with_findings(folder, tmp_path, chexpert):
    out = tmp_path / "f.csv"
    label(str(folder), out, settings=chexpert)
    samples = load(str(out)).samples
    assert [sample.captions[0] for sample in samples] == [row["text"] for row in table(out)]
    assert dict(samples[0].findings)["Edema"] is Finding.UNCERTAIN
    assert tuple(name for name, _ in samples[0].findings) == chexpert.vocabulary.names
    assert {int(value): cell for value, cell in CELLS.items()} == {1: "1", 0: "0", -1: "-1", -2: ""}


def test_only_some_findings_and_other_things_as_evidence(chexpert):
    report = report_of(b"Scoliosis. No edema.", id="a.txt")
    (row,) = rows_of(report, Extractor(chexpert.vocabulary), settings=chexpert)
    assert dict(row.findings)["No Finding"] is Finding.UNMENTIONED
    assert [each.words for each in row.evidence] == ["Scoliosis", "edema"]
    few = Settings(vocabulary=chexpert.vocabulary.only(["Edema"]))
    (row,) = rows_of(report, Extractor(few.vocabulary), settings=few)
    assert row.findings == (("Edema", Finding.ABSENT),)


def test_images_of_a_table_stay_with_their_reports(tmp_path, chexpert):
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "studies.csv").write_text("image,report\n1.png,No effusion.\n")
    label(str(tmp_path / "studies.csv"), tmp_path / "f.csv", settings=chexpert)
    (sample,) = load(str(tmp_path / "f.csv")).samples
    assert sample.image == tmp_path / "1.png"
    assert dict(sample.findings)["Pleural Effusion"] is Finding.ABSENT


def test_nothing_is_written_if_something_goes_wrong(folder, tmp_path, chexpert):
    out = tmp_path / "out" / "f.csv"
    with pytest.raises(UserError, match="more than --max-bad 0"):
        label(str(folder), out, settings=chexpert, max_bad=0)
    assert [path.name for path in out.parent.iterdir()] == ["f.quarantine.jsonl"]
    for name in ("1.txt", "2.txt", "4.xml"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="has a sentence to read .1 cannot be read, 1 are empty"):
        label(str(folder), out, settings=chexpert)
    assert [path.name for path in out.parent.iterdir()] == ["f.quarantine.jsonl"]


def test_a_section_that_no_report_has_is_a_mistake(folder, tmp_path, chexpert):
    settings = Settings(vocabulary=chexpert.vocabulary, sections=("impresion",))
    with pytest.raises(
        UserError, match="no report has a section called impresion .did you mean 'impression'.*there are: "
    ):
        label(str(folder), tmp_path / "f.csv", settings=settings)
    (folder / "6.txt").write_text("NOTE: No edema.")
    assert label(str(folder), tmp_path / "f.csv", settings=chexpert).whole == 1


@pytest.mark.parametrize("name", ["f.txt", "f", "reports/1.txt"])
def test_the_table_is_a_csv(folder, tmp_path, chexpert, name):
    with pytest.raises(UserError, match="give a name that ends in .csv"):
        label(str(folder), tmp_path / name, settings=chexpert)


def test_the_table_that_is_read_is_not_written_over(tmp_path, chexpert):
    path = tmp_path / "f.csv"
    path.write_text("id,text\n1,No edema.\n")
    with pytest.raises(UserError, match="is the table that is read"):
        label(f"{path}?text=text", path, settings=chexpert)
    assert path.read_text() == "id,text\n1,No edema.\n"
    path.rename(tmp_path / "g.evidence.csv")
    with pytest.raises(UserError, match="is the table that is read"):
        label(f"{tmp_path / 'g.evidence.csv'}?text=text", tmp_path / "g.csv", settings=chexpert)


def test_the_summary_shows_every_finding(folder, tmp_path, chexpert):
    console = Console(width=120)
    with console.capture() as said:
        show(label(str(folder), tmp_path / "f.csv", settings=chexpert), console)
    assert all(name in said.get() for name in chexpert.vocabulary.names)


def test_reports_that_say_no_word_of_the_vocabulary_are_told_of(tmp_path, chexpert):
    (tmp_path / "de").mkdir()
    for number in range(SPEAKING):
        (tmp_path / "de" / f"{number}.txt").write_text("Kein Pleuraerguss.")
    with pytest.raises(UserError, match="none of the 20 reports says a word of the vocabulary 'chexpert'"):
        label(str(tmp_path / "de"), tmp_path / "f.csv", settings=chexpert)
    (tmp_path / "de" / "0.txt").write_text("No effusion.")
    notes = label(str(tmp_path / "de"), tmp_path / "f.csv", settings=chexpert).notes()
    assert notes == ("19 of 20 reports say no word of the vocabulary: is it of their language and their subject?",)


def test_the_first_that_cannot_be_read_is_named_with_its_reason(tmp_path, chexpert):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "1.txt").write_bytes("Épanchement.".encode("latin-1"))
    with pytest.raises(UserError, match=r"The first that cannot be read: 1.txt is not UTF-8.*add \?encoding=NAME"):
        label(str(tmp_path / "r"), tmp_path / "f.csv", settings=chexpert)
    (tmp_path / "r" / "2.txt").write_text("No edema.")
    (note,) = label(str(tmp_path / "r"), tmp_path / "f.csv", settings=chexpert).notes()
    assert note.startswith("reports that cannot be read: 1 (the first: 1.txt is not UTF-8")


def test_rows_without_a_text_are_noted(tmp_path, chexpert):
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("image,report\n1.png,No edema.\n,\n")
    summary = label(str(tmp_path / "t.csv"), tmp_path / "f.csv", settings=chexpert)
    assert any("empty rows left out" in note for note in summary.notes())


def test_numbers_below_0_are_refused(folder, tmp_path, chexpert):
    for numbers in ({"workers": -1}, {"max_bad": -1}):
        with pytest.raises(UserError, match="neither can be below 0"):
            label(str(folder), tmp_path / "f.csv", settings=chexpert, **numbers)


@pytest.mark.slow
def test_the_number_of_processes_does_not_change_the_result(tmp_path, chexpert):
    texts = list(REPORTS.values())[:3]
    (tmp_path / "t.csv").write_text("id,text\n" + "".join(f'{n},"{texts[n % 3]} {n}."\n' for n in range(700)))
    for count in (1, 2):
        label(str(tmp_path / "t.csv"), tmp_path / f"{count}.csv", settings=chexpert, workers=count)
    assert (tmp_path / "1.csv").read_text() == (tmp_path / "2.csv").read_text()
    assert (tmp_path / "1.evidence.csv").read_text() == (tmp_path / "2.evidence.csv").read_text()
