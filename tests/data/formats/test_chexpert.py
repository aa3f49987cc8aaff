import pytest

from radiographs import cells, write_chexpert, write_csv
from unicl.data.formats.chexpert import FINDINGS, is_chexpert
from unicl.data.sources import load, read_bytes
from unicl.errors import UserError
from unicl.space import Finding

STUDIES = (
    {"No Finding": 1.0, "Support Devices": 1.0},
    {"Edema": -1.0, "Pleural Effusion": 1.0, "Pneumonia": 0.0},
)


def test_the_table_in_the_folder_of_the_data_set_is_read(tmp_path):
    table = write_chexpert(tmp_path / "CheXpert-v1.0-small", STUDIES)
    source = load(str(table))
    assert source.format == "chexpert"
    assert source.guessed == {"image": "Path", "patient": "patient", "findings": "No Finding and 13 more"}
    assert [sample.patient for sample in source.samples] == ["patient00001"] * 2 + ["patient00002"] * 2
    assert [sample.id for sample in source.samples] == [
        f"train/patient0000{number}/study1/view{view}_{side}.jpg"
        for number in (1, 2)
        for view, side in ((1, "frontal"), (2, "lateral"))
    ]
    assert all(read_bytes(sample.image) for sample in source.samples)
    known = dict(source.samples[2].findings)
    assert tuple(known) == FINDINGS
    assert known["Edema"] == Finding.UNCERTAIN
    assert known["Pleural Effusion"] == Finding.PRESENT
    assert known["Pneumonia"] == Finding.ABSENT
    assert known["Fracture"] == Finding.UNMENTIONED


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "", "./data/CheXpert/data/CheXpert-v1.0-small/"])
def test_the_folder_before_a_path_may_be_there_or_not(tmp_path, prefix):
    source = load(str(write_chexpert(tmp_path / "data", STUDIES, prefix=prefix)))
    assert source.samples[0].id == "train/patient00001/study1/view1_frontal.jpg"
    assert read_bytes(source.samples[0].image)


def test_a_table_elsewhere_names_the_folder_with_root(tmp_path):
    write_chexpert(tmp_path / "CheXpert-v1.0-small", STUDIES)
    for root in (tmp_path, tmp_path / "CheXpert-v1.0-small"):
        table = tmp_path / "lists" / "train.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_bytes((tmp_path / "CheXpert-v1.0-small/train.csv").read_bytes())
        source = load(f"{table}?root={root}&where=Frontal/Lateral:Frontal")
        assert len(source.samples) == 2
        assert all(read_bytes(sample.image) for sample in source.samples)


def test_views_findings_and_patients_are_chosen_by_the_query(tmp_path):
    table = write_chexpert(tmp_path, STUDIES)
    frontal = load(f"{table}?where=Frontal/Lateral:Frontal;patient:patient00002&findings=Edema,Fracture")
    assert [sample.id for sample in frontal.samples] == ["train/patient00002/study1/view1_frontal.jpg"]
    assert frontal.samples[0].findings == (("Edema", Finding.UNCERTAIN), ("Fracture", Finding.UNMENTIONED))
    with pytest.raises(UserError, match="no column for the finding 'Edma' .did you mean 'Edema'"):
        load(f"{table}?findings=Edma")


def test_a_study_is_one_sample_with_all_its_images(tmp_path):
    source = load(f"{write_chexpert(tmp_path, STUDIES)}?study=study")
    assert [sample.id for sample in source.samples] == ["patient00001/study1", "patient00002/study1"]
    assert [len(sample.images) for sample in source.samples] == [2, 2]
    assert source.samples[0].images == (source.samples[0].image, *source.samples[0].others)
    assert len({read_bytes(image) for sample in source.samples for image in sample.images}) == 4


def test_medclips_and_convirts_tables_are_read_as_released(tmp_path):
    write_chexpert(tmp_path / "CheXpert-v1.0-small", STUDIES)
    path = "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg"
    zeros = {**dict.fromkeys(FINDINGS, 0.0), "Pleural Effusion": 1.0}
    header = ("", "imgpath", "subject_id", *FINDINGS)
    meta = write_csv(tmp_path / "meta.csv", header, [(7, f"./data/{path}", "patient00002-study1", *cells(zeros))])
    found = load(f"{meta}?only=all").samples
    assert [(sample.id, sample.labels) for sample in found] == [(path, ("Pleural Effusion",))]
    queries = write_csv(tmp_path / "query.csv", ("Variable", "Path"), [("Pleural Effusion", path)])
    found = load(str(queries)).samples
    assert [(sample.labels, sample.findings) for sample in found] == [(("Pleural Effusion",), ())]
    texts = write_csv(tmp_path / "texts.csv", ("Variable", "Text"), [("Edema", "Alveolar edema is present.")])
    found = load(f"{texts}?label=Variable").samples
    assert [(sample.labels, sample.captions) for sample in found] == [(("Edema",), ("Alveolar edema is present.",))]


def test_quoted_names_of_columns_are_the_same_names(tmp_path):
    table = write_chexpert(tmp_path / "CheXpert-v1.0-small", STUDIES)
    head, rows = table.read_text().split("\n", 1)
    table.write_text(",".join(f'"{name}"' for name in head.split(",")) + "\n" + rows)
    assert len(load(str(table)).samples) == 4


def test_other_tables_are_none_of_chexperts(tmp_path):
    assert not is_chexpert(write_csv(tmp_path / "a.csv", ("Path", "title"), [("a.jpg", "x")]))
    assert not is_chexpert(write_csv(tmp_path / "b.csv", ("file", "title"), [("patient00001/study1/a.jpg", "x")]))
    assert not is_chexpert(write_csv(tmp_path / "empty.csv", (), ()))
    assert not is_chexpert(tmp_path)


def test_the_folder_alone_asks_for_one_of_its_tables(tmp_path):
    write_chexpert(tmp_path / "CheXpert-v1.0-small", STUDIES)
    with pytest.raises(
        UserError, match="is CheXpert's folder; give one of its tables, such as CheXpert-v1.0-small/train"
    ):
        load(str(tmp_path / "CheXpert-v1.0-small"))


def test_images_that_are_nowhere_are_named_as_they_were_looked_for(tmp_path):
    table = write_chexpert(tmp_path / "a", STUDIES)
    moved = tmp_path / "b" / "train.csv"
    moved.parent.mkdir()
    moved.write_bytes(table.read_bytes())
    with pytest.raises(UserError, match=r"none of the 4 images that train.csv names is there.*root=DIR"):
        load(str(moved))
