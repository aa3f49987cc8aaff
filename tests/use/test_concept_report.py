import csv
import json
from io import StringIO
from xml.etree import ElementTree

import pytest
from rich.console import Console

from unicl.errors import UserError
from unicl.use.concept_report import FILES, most_plot, page, rank_plot, save, show
from unicl.use.concepts import Concept, Counted


def counted(name="a <b>.csv", *, images=10, unread=0):
    concepts = tuple(
        Concept(name=word, kind="noun", seen=20 - k, images=images // (k + 1))
        for k, word in enumerate(["dog", "狗", "$5 & co"])
    )
    facts = {"texts": 12, "vocabulary": 30, "phrases": 4, "bare": 2, "unread": unread}
    return Counted(name=name, images=images, concepts=concepts, **facts)


def test_the_files_hold_every_concept_and_every_number(tmp_path):
    save([counted()], tmp_path / "new", least=3)
    lines = list(csv.DictReader((tmp_path / "new" / FILES[0]).open(encoding="utf-8")))
    assert [line["concept"] for line in lines] == ["dog", "狗", "$5 & co"]
    assert (lines[1]["seen"], lines[1]["images"], lines[1]["source"]) == ("19", "5", "a <b>.csv")
    facts = json.loads((tmp_path / "new" / FILES[1]).read_text(encoding="utf-8"))
    assert facts["least"] == 3
    assert facts["sources"][0]["concepts"] == 3
    assert facts["sources"][0]["images_per_concept"] == pytest.approx(3.3333)


def test_the_page_names_sources_as_text_and_draws_both_plots():
    text = page([counted(), counted("together")])
    assert "a &lt;b&gt;.csv" in text
    assert text.count("<svg") == 2
    for plot in (rank_plot([counted()]), most_plot(counted())):
        drawn = [node.text for node in ElementTree.fromstring(plot).iter("{http://www.w3.org/2000/svg}text")]
        assert drawn
    assert {"dog", "狗", "$5 & co"} <= set(drawn)
    assert "<svg" not in page(
        [Counted(name="x", images=1, texts=1, vocabulary=0, phrases=0, bare=1, unread=0, concepts=())]
    )


def test_texts_without_images_are_drawn_by_mentions():
    assert "mentions of a concept" in rank_plot([counted(images=0)])


def test_the_table_shows_what_could_not_be_read():
    out = StringIO()
    show([counted(unread=1234)], console=Console(file=out, width=120))
    assert "which were not read: 1,234" in out.getvalue()
    assert "most: dog 10, 狗 5" in out.getvalue()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into .*file"):
        save([counted()], tmp_path / "file")
