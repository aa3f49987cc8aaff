import json
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from evaluate_oracles import colour_samples, source, tiny_model
from unicl.data.collate import class_texts
from unicl.data.keys import finding_key
from unicl.errors import UserError
from unicl.evaluate.run import evaluate
from unicl.objective.classify import ClassifySettings, ClassName
from unicl.space import Finding, Sample
from unicl.use.head import with_head
from unicl.use.points import Asking, Point, measure, model_at, shares_of, table, write


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    root = tmp_path_factory.mktemp("points")
    return source(colour_samples(root, each=4), root=root)


def told(colours):
    """The same pictures with findings: red, green and a third that all of them have."""
    samples = [
        Sample(
            id=s.id,
            image=s.image,
            findings=(*((n, Finding(int(n in s.labels))) for n in ("red", "green")), ("picture", Finding.PRESENT)),
        )
        for s in colours.samples
    ]
    return source(samples, root=colours.root)


def finding_model():
    names = ("red", "green", "picture")
    classes = [ClassName(label=name, key=finding_key(name)) for name in names]
    settings = ClassifySettings(of="findings", loss="sigmoid", reads="whole")
    return with_head(
        tiny_model(), classes, settings=settings, texts=class_texts("auto"), generator=torch.Generator().manual_seed(0)
    )


def test_both_ends_are_always_measured_and_a_share_beyond_them_is_refused():
    assert shares_of([0.5, 0.2]) == (0.0, 0.2, 0.5, 1.0)
    assert shares_of([1.0]) == (0.0, 1.0)
    with pytest.raises(UserError, match=r"--wise 1\.2 is the share"):
        shares_of([1.2])


def test_at_both_ends_the_model_is_the_end_and_between_its_weights_are():
    first, second = tiny_model(seed=0), tiny_model(seed=1)
    assert model_at(first, second, share=0.0) is first
    assert model_at(first, second, share=1.0) is second
    half, ends = model_at(first, second, share=0.5), (first.state_dict(), second.state_dict())
    name = "image.head.weight"
    assert torch.allclose(half.state_dict()[name], (ends[0][name] + ends[1][name]) / 2)


def test_classes_are_measured_as_unicl_evaluate_does(colours):
    model = tiny_model()
    report = evaluate(model, [colours], tasks=("zeroshot",), mistakes=0)
    assert measure(model, colours, asking=Asking()) == report.results[0].scores


def test_findings_are_measured_by_the_area_under_the_curve_of_each(colours):
    model, known = finding_model(), told(colours)
    scores = {score.key: score for score in measure(model, known, asking=Asking())}
    # All pictures have the third finding, so that nothing is to be told apart.
    assert list(scores) == ["findings/auc", "findings/auc/red", "findings/auc/green"]
    layer = model.objective.terms["classes"]
    images = model.encode_images([str(s.image) for s in known.samples])
    with torch.no_grad():
        logits = layer.head(layer.seen(images))
    truth = [dict(s.findings)["red"] == 1 for s in known.samples]
    assert math.isclose(scores["findings/auc/red"].value, roc_auc_score(truth, logits[:, 0]), rel_tol=1e-9)
    mean = (scores["findings/auc/red"].value + scores["findings/auc/green"].value) / 2
    assert math.isclose(scores["findings/auc"].value, mean, rel_tol=1e-12)


def test_data_that_say_nothing_of_findings_say_so(colours):
    with pytest.raises(UserError, match=r"no image with findings.*findings=\*"):
        measure(finding_model(), colours, asking=Asking())
    everywhere = [Sample(id=s.id, image=s.image, findings=(("red", Finding.PRESENT),)) for s in colours.samples]
    with pytest.raises(UserError, match=r"nothing to measure"):
        measure(finding_model(), source(everywhere, root=colours.root), asking=Asking())


def test_the_numbers_are_written_as_a_table_a_plot_and_data(colours, tmp_path):
    model = tiny_model()
    scores = measure(model, colours, asking=Asking())
    points = [Point(share=share, source="a|b", scores=scores) for share in (0.0, 0.5, 1.0)]
    write(points, tmp_path)
    content = json.loads((tmp_path / "finetune.json").read_text())
    assert [one["share"] for one in content] == [0.0, 0.5, 1.0]
    assert content[0]["scores"][0]["key"] == "zeroshot/top1"
    lines = (tmp_path / "finetune.md").read_text().splitlines()
    assert lines[4].startswith("| a\\|b | zero-shot, before | 0 |")
    assert "weights between (WiSE-FT) | 0.5" in lines[5]
    plot = (tmp_path / "finetune.svg").read_text()
    assert "share of the fine-tuned weights" in plot
    write(points, tmp_path)
    assert (tmp_path / "finetune.svg").read_text() == plot
    assert table(points).row_count == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into"):
        write(points, tmp_path / "file")
