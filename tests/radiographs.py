"""CheXpert and MIMIC-CXR in the small: their tables and folders, with pictures of a few pixels."""

import gzip

from pictures import picture
from unicl.data.formats.chexpert import FINDINGS

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
OF_MIMIC = tuple(sorted(FINDINGS))
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // pneumonia?

 FINDINGS:

 The lungs of {} are clear. The heart
 is normal.

 IMPRESSION:

 No acute disease.
"""


def write_csv(path, header, rows):
    text = "".join(",".join(map(str, row)) + "\n" for row in (header, *rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def cells(findings, names=FINDINGS):
    """The cells of a row: 1.0, 0.0, -1.0 of the findings that are given, blank for the others."""
    return [findings.get(name, "") for name in names]


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed))


def write_chexpert(folder, studies, *, prefix="CheXpert-v1.0-small/", table="train.csv", views=("frontal", "lateral")):
    """``train.csv`` in the folder of the data set, a study for each of the findings that are given, two views each."""
    rows = []
    for number, findings in enumerate(studies, start=1):
        for view, side in enumerate(views, start=1):
            place = f"train/patient{number:05}/study1/view{view}_{side}.jpg"
            write_image(folder / place, seed=10 * number + view)
            rows.append((prefix + place, "Female", 68, side.capitalize(), "AP", *cells(findings)))
    return write_csv(folder / table, HEADER, rows)


def write_mimic(folder, studies, *, packed=True, ending=".jpg", reports=True):
    """MIMIC-CXR's three tables, images and reports: ``studies`` are findings by study number, two images each."""
    end = ".csv.gz" if packed else ".csv"
    images, findings_rows, splits = [], [], []
    for number, findings in enumerate(studies, start=1):
        patient, study = f"1{number:07}", f"5{number:07}"
        home = folder / f"files/p{patient[:2]}/p{patient}/s{study}"
        for view in ("PA", "LATERAL"):
            id = f"{number:08x}-{view.lower()}"
            write_image(home / f"{id}{ending}", seed=number)
            images.append((id, patient, study, "CHEST (PA AND LAT)", view, 20, 24))
            splits.append((id, study, patient, "train" if number % 2 else "test"))
        findings_rows.append((patient, study, *cells(findings, OF_MIMIC)))
        if reports:
            home.with_suffix(".txt").write_text(REPORT.format(number))
    head = ("dicom_id", "subject_id", "study_id", "PerformedProcedure", "ViewPosition", "Rows", "Columns")
    write_csv(folder / f"mimic-cxr-2.0.0-metadata{end}", head, images)
    write_csv(folder / f"mimic-cxr-2.0.0-chexpert{end}", ("subject_id", "study_id", *OF_MIMIC), findings_rows)
    write_csv(folder / f"mimic-cxr-2.0.0-split{end}", ("dicom_id", "study_id", "subject_id", "split"), splits)
    return folder
