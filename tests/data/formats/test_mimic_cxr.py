from shutil import rmtree

import pytest

from dicoms import dicom, ramp
from radiographs import write_mimic
from unicl.data.formats import mimic_cxr
from unicl.data.formats.chexpert import FINDINGS
from unicl.data.formats.mimic_cxr import is_mimic_cxr
from unicl.data.image import decode
from unicl.data.sources import load, read_bytes
from unicl.errors import UserError
from unicl.space import Finding

STUDIES = ({"Pneumonia": 1.0, "Edema": -1.0}, {"No Finding": 1.0}, {"Fracture": 0.0})


@pytest.mark.parametrize("packed", [True, False])
def test_tables_images_and_reports_come_together(tmp_path, packed):
    home = write_mimic(tmp_path / "mimic-cxr-jpg", STUDIES, packed=packed)
    end = ".csv.gz" if packed else ".csv"
    for typed in (home, home / f"mimic-cxr-2.0.0-chexpert{end}", home / f"mimic-cxr-2.0.0-metadata{end}"):
        source = load(str(typed))
        assert source.format == "mimic-cxr"
        assert len(source.samples) == 6
        roles = {"image": "image", "text": "report", "patient": "patient", "findings": "No Finding and 13 more"}
        assert source.guessed == roles
        first = source.samples[0]
        assert first.id == "files/p10/p10000001/s50000001/00000001-pa.jpg"
        assert read_bytes(first.image)
        assert first.captions == ("The lungs of 1 are clear. The heart is normal.\nNo acute disease.",)
        known = dict(first.findings)
        assert tuple(known) == FINDINGS
        assert (known["Pneumonia"], known["Edema"]) == (Finding.PRESENT, Finding.UNCERTAIN)
        assert known["Fracture"] == Finding.UNMENTIONED


def test_parts_and_views_are_chosen_and_a_study_is_one_sample(tmp_path):
    home = write_mimic(tmp_path, STUDIES)
    frontal = load(f"{home}?where=split:test;Frontal/Lateral:Frontal")
    assert [sample.id for sample in frontal.samples] == ["files/p10/p10000002/s50000002/00000002-pa.jpg"]
    assert len(load(f"{home}?where=ViewPosition:LATERAL").samples) == 3
    studies = load(f"{home}?study=study").samples
    assert [sample.id for sample in studies] == [f"p1000000{k}/s5000000{k}" for k in (1, 2, 3)]
    assert all(len(sample.images) == 2 and len(sample.captions) == 1 for sample in studies)


def test_reports_may_stand_in_a_folder_of_their_own_or_nowhere(tmp_path):
    home = write_mimic(tmp_path / "with", STUDIES)
    for report in home.glob("files/p10/p*/s*.txt"):
        moved = home / "mimic-cxr-reports" / report.relative_to(home)
        moved.parent.mkdir(parents=True, exist_ok=True)
        report.rename(moved)
    assert load(str(home)).samples[0].captions == ("The lungs of 1 are clear. The heart is normal.\nNo acute disease.",)
    source = load(str(write_mimic(tmp_path / "without", STUDIES, reports=False)))
    assert all(sample.captions == () for sample in source.samples)
    assert "text" not in source.guessed
    assert source.notes == ("there is no report (files/p.../s....txt) in without: the images have no texts",)


def test_dicom_files_take_the_place_of_jpegs(tmp_path):
    home = write_mimic(tmp_path, STUDIES[:1], ending=".dcm")
    for file in home.glob("files/p10/p*/s*/*.dcm"):
        file.write_bytes(dicom(ramp()))
    source = load(str(home))
    assert [decode(sample.image).shape for sample in source.samples] == [(3, 6, 8)] * 2


def test_a_missing_table_is_named(tmp_path):
    home = write_mimic(tmp_path / "a", STUDIES)
    (home / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    source = load(str(home))
    assert all(sample.findings == () for sample in source.samples)
    assert "have no findings" in source.notes[0]
    home = write_mimic(tmp_path / "b", STUDIES)
    (home / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    for typed in (home, home / "mimic-cxr-2.0.0-chexpert.csv.gz"):
        with pytest.raises(UserError, match=r"has no mimic-cxr-2.0.0-metadata.csv or .csv.gz, which lists the images"):
            load(str(typed))
    home = write_mimic(tmp_path / "c", STUDIES)
    (home / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(UserError, match="has no column 'split', which where= names"):
        load(f"{home}?where=split:train")
    assert not is_mimic_cxr(home / "files")


def test_of_a_part_of_the_data_the_first_patients_that_are_there_say_where_files_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(mimic_cxr, "_HEAD", 1)
    home = write_mimic(tmp_path, STUDIES, ending=".dcm")
    rmtree(home / "files/p10/p10000001")
    source = load(str(home))
    assert len(source.samples) == 4
    assert source.samples[0].image == home / "files/p10/p10000002/s50000002/00000002-pa.dcm"
    assert source.samples[0].captions == ("The lungs of 2 are clear. The heart is normal.\nNo acute disease.",)
    assert source.notes == ("2 of 6 images are of patients without a folder here, and left out",)
    rmtree(home / "files/p10/p10000003/s50000003")
    assert load(str(home)).notes[1].startswith("2 of 4 image paths lead to no file")
    rmtree(home / "files")
    with pytest.raises(UserError, match="none of the 6 images that .* names is there"):
        load(str(home))


def test_a_table_without_its_columns_or_that_is_none_is_named(tmp_path):
    home = write_mimic(tmp_path, STUDIES, packed=False)
    metadata = home / "mimic-cxr-2.0.0-metadata.csv"
    metadata.write_text(metadata.read_text().replace("dicom_id", "id", 1))
    with pytest.raises(UserError, match="has no column 'dicom_id'"):
        load(str(home))
    metadata.write_bytes(b"")
    with pytest.raises(UserError, match=r"mimic-cxr-2.0.0-metadata.csv cannot be read as a CSV table"):
        load(str(home))
