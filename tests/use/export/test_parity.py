"""Differences between a model and its export, and when they are too large."""

import json
from dataclasses import replace

import pytest
import torch

from unicl.use.export.parity import BOUNDS, Report, compare, retrieval
from unicl.use.export.sample import draw


def test_a_model_equals_itself_and_not_another(model, other):
    sample = draw(model, None, count=6)
    rows, found = compare(model, model, sample, view="instances", dtype="fp32")
    assert [(row.graph, row.count) for row in rows] == [("image", 6), ("text", len(sample.texts))]
    assert all(row.difference == 0 and row.cosine > 0.999999 for row in rows)
    assert (found.first, found.few, found.lost) == (1, 1, 0)
    rows, found = compare(model, other, sample, view="instances", dtype="fp32")
    assert all(row.cosine < 0.9 and row.difference > 0.1 for row in rows)
    assert found.lost > 0


def test_retrieval_counts_the_same_first_pictures_and_what_was_lost():
    before = torch.tensor([[0.9, 0.5, 0.1, 0.0, 0.2, 0.3, 0.4], [0.1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0]])
    after = torch.tensor([[0.9, 0.5, 0.1, 0.0, 0.2, 0.3, 0.4], [0.1, 0.7, 0.8, 0.6, 0.5, 0.0, 0.55]])
    found = retrieval(before, after)
    assert (found.texts, found.pictures) == (2, 7)
    assert found.first == pytest.approx(0.5)
    assert found.few == pytest.approx((5 + 4) / 10)
    assert found.lost == pytest.approx(0.05)


def report(rows, found, **changes):
    whole = Report(
        kind="onnx", dtype="int8", view="both", rows=rows, retrieval=found, bounds=BOUNDS["int8"], sizes={}, sample="x"
    )
    return replace(whole, **changes)


def test_a_report_fails_on_each_bound_and_on_what_is_not_a_number(model):
    rows, found = compare(model, model, draw(model, None, count=4), view="classes", dtype="int8")
    assert report(rows, found).failures == ()
    for change in ({"cosine": 0.98}, {"cosine": float("nan")}, {"difference": float("nan")}):
        assert len(report((replace(rows[0], **change),), found).failures) == 1
    assert "0.1000 worse" in report(rows, replace(found, lost=0.1)).failures[0]
    # What 8 bits started from has to be as good as a float32 export.
    early = replace(rows[0], dtype="fp32", final=False, difference=1e-3)
    assert "image (fp32) differs by 1.00e-03" in report((early, *rows), found).failures[0]


def test_a_report_is_written_for_programs_and_for_people(model, tmp_path):
    rows, found = compare(model, model, draw(model, None, count=4), view="instances", dtype="int8")
    report(rows, found, sizes={"image.onnx": 2_500_000}, notes=("a note",)).save(tmp_path)
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["rows"][0]["graph"] == "image"
    assert content["failures"] == []
    page = (tmp_path / "parity.md").read_text()
    assert "| image | int8 | 4 | 0.0e+00 |" in page
    assert "image.onnx: 2.5 MB" in page
    assert "- a note" in page
