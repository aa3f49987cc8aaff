import json
from dataclasses import replace

from unicl.data.check.report import Finding, Level
from unicl.data.check.run import check
from unicl.space import Sample


def test_only_problems_stop_training(make_source) -> None:
    report = check([make_source([Sample(id="1", captions=("a",)), Sample(id="2", captions=("b",))])])
    findings = tuple(Finding(level=level, topic="t", text=level.value) for level in Level)
    assert [f.text for f in replace(report, findings=findings).problems] == ["problem"]


def test_names_that_are_not_utf8_can_be_written(make_source) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    report = check([make_source([Sample(id=name, image=b"broken", captions=("a",))], name=name)])
    text = report.to_json()
    assert json.loads(text.encode("utf-8"))["sources"][0]["name"] == "caf?.png"
