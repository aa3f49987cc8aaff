"""Reports from folders, archives and tables, and what cannot be read."""

import io
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from unicl.data.quarantine import Quarantine
from unicl.data.reports.files import reports
from unicl.errors import UserError

READ = ("findings", "impression")
XML = """<?xml version="1.0"?><eCitation><Abstract>
<AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">Heart &lt; normal. Lungs clear.</AbstractText>
<AbstractText Label="IMPRESSION">{}</AbstractText></Abstract>
<MeSH><major>Cardiomegaly/mild</major><major>Nodule</major><automatic>x</automatic></MeSH></eCitation>"""


def read(path, limit=0, listed=None):
    quarantine = Quarantine(limit=limit, path=listed)
    found = reports(str(path), quarantine=quarantine)
    return found.total, {report.id: report for report in found.read()}, quarantine


def test_a_folder_gives_its_texts_and_xml_by_path_and_the_mesh_terms_of_these(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.xml").write_text(XML.format("Normal."))
    (tmp_path / "a.txt").write_text("All clear.")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "photo.jpg").write_bytes(b"")
    total, found, _ = read(tmp_path)
    assert total == 2
    assert list(found) == ["a.txt", "b/1.xml"]
    assert found["b/1.xml"].terms == ("Cardiomegaly/mild", "Nodule")
    assert found["b/1.xml"].text(READ) == "Heart < normal. Lungs clear.\nNormal."
    assert list(read(tmp_path / "a.txt")[1]) == ["a.txt"]


def test_what_cannot_be_read_is_left_out_and_listed_up_to_a_limit(tmp_path):
    (tmp_path / "good.txt").write_text("All clear.")
    (tmp_path / "half.xml").write_text(XML.format("Normal.")[:150])
    (tmp_path / "other.xml").write_text("<html/>")
    (tmp_path / "latin.txt").write_bytes("Größe normal.".encode("latin-1"))
    _, found, quarantine = read(tmp_path, limit=3, listed=tmp_path / "q.jsonl")
    assert list(found) == ["good.txt"]
    assert "broken XML: " in quarantine.reasons["half.xml"]
    assert "no AbstractText, but begins with <html>" in quarantine.reasons["other.xml"]
    assert "not UTF-8 text" in quarantine.reasons["latin.txt"]
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="more than --max-bad 1"):
        read(tmp_path, limit=1)
    assert "latin.txt" in read(f"{tmp_path}?encoding=latin-1", limit=3)[1]


def test_a_folder_without_reports_says_what_it_holds(tmp_path):
    with pytest.raises(UserError, match=r"holds no reports \(\.txt or \.xml files\)$"):
        reports(str(tmp_path), quarantine=Quarantine(limit=0))
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="it holds .csv files: name a table itself"):
        reports(str(tmp_path), quarantine=Quarantine(limit=0))
    with pytest.raises(UserError, match="no file or folder"):
        reports(str(tmp_path / "none"), quarantine=Quarantine(limit=0))


def test_an_archive_is_read_in_place_and_a_broken_one_says_so(tmp_path):
    path = tmp_path / "all.tgz"
    with tarfile.open(path, "w:gz") as file:
        for name, content in {"x/1.xml": XML.format("Normal."), "x/readme.md": "no"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content.encode()))
    assert list(read(path)[1]) == ["x/1.xml"]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="all.tgz cannot be read as a tar"):
        read(path)


def test_a_table_gives_its_reports_with_their_images(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    path = tmp_path / "studies.csv"
    path.write_text('image,report\n1.png,"FINDINGS: Clear. IMPRESSION: Normal."\n')
    (report,) = read(path)[1].values()
    assert report.image == str(tmp_path / "1.png")
    assert report.text(["impression"]) == "Normal."
    path.write_text("uid,findings,impression\n7,Clear.,Normal.\n8,,\n")
    (report,) = read(path)[1].values()
    assert report.text(READ) == "Clear.\nNormal."
    path.write_text("uid,words\n7,Clear.\n")
    assert [report.text(READ) for report in read(f"{path}?text=words")[1].values()] == ["Clear."]


def test_a_table_without_texts_says_which_columns_it_has(tmp_path):
    path = tmp_path / "studies.csv"
    path.write_text("image,age\n1.png,70\n")
    with pytest.raises(UserError, match=r"no column with texts .it has 'image', 'age'.*studies.csv\?text=COLUMN"):
        read(path)
    path.write_text("uid,age\n1,70\n")
    with pytest.raises(UserError, match=r"text=COLUMN"):
        read(path)


def test_the_collection_of_indiana_university_is_read_whole():
    package = find_spec("torchxrayvision")
    if package is None:
        pytest.skip("needs torchxrayvision")
    total, found, _ = read(Path(package.origin).parent / "data" / "NLMCXR_reports.tgz")
    assert total == len(found) == 3955
    assert sum("normal" in report.terms for report in found.values()) == 1391
    assert sum(not report.text(READ) for report in found.values()) == 28
