from tiny import write_photos
from unicl.data.check import check
from unicl.data.check.known import known_findings
from unicl.data.sources import load_all
from unicl.space import Finding, Sample


def test_each_finding_is_counted_of_images_and_of_texts():
    sick = (("Edema", Finding.PRESENT), ("Mass", Finding.UNMENTIONED))
    unsure = (("Edema", Finding.UNCERTAIN), ("Mass", Finding.ABSENT))
    samples = (
        Sample(id="a", image=b"x", findings=sick),
        Sample(id="b", captions=("a",), findings=unsure),
        Sample(id="c", image=b"y", captions=("b",), findings=sick),
    )
    edema, mass = known_findings(samples)
    assert (edema.name, edema.images, edema.texts) == ("Edema", (2, 0, 0, 0), (1, 1, 0, 0))
    assert (mass.name, mass.images, mass.texts) == ("Mass", (0, 0, 0, 2), (0, 0, 1, 1))


def test_findings_of_both_sides_are_enough_to_train_and_are_told(tmp_path):
    write_photos(tmp_path, each=2)
    images = [f"photos/{name}/{k}.png,{int(name == 'red')},1" for name in ("red", "blue") for k in range(2)]
    (tmp_path / "i.csv").write_text("\n".join(["file,finding:Red,finding:Odd", *images]) + "\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("text,finding:Red\nsomething red,1\nnothing red,0\n", encoding="utf-8")
    report = check(load_all([str(tmp_path / "i.csv"), str(tmp_path / "t.csv")]), batch_size=4)
    assert report.recipe == "medclip"
    told = [finding.text for finding in report.findings if finding.topic == "findings"]
    assert told[0] == "Red: images: 2 present, 0 uncertain, 2 absent; texts: 1 present, 0 uncertain, 1 absent"
    assert told[-1] == "1 finding is known of images or of texts alone: Odd"
    assert not report.problems
