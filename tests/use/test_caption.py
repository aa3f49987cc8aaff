"""Captions of photographs by a small model of random weights: how they are written, listed and compared."""

import csv
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import CaptionSettings
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts
from unicl.use.caption import Captions, Judged, Manner, caption, judge, references, show
from unicl.use.generate import beam_search
from unicl.use.spell import spelled


@pytest.fixture(scope="module")
def writer():
    """Sharp enough that pictures differ."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red flower", "a temple by the water"] * 2, vocab_size=320, context=8)
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32, head="none", parts=ImageParts(head="none", unit=False)),
        text=None,
        width=64,
        terms=(CaptionSettings(task="captioning", width=32, heads=2),),
        recipe="caption_lm",
    )
    model = TwoTowers(settings, tokenizer=tokenizer).eval()
    for parameter in model.objective.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def test_each_picture_gets_the_caption_that_its_places_have_and_what_cannot_be_read_is_listed(writer, photos):
    found = caption(writer, [photos], manner=Manner(beams=3, most=6), batch=5)
    assert [item.id.rpartition("/")[2] for item in found.skipped] == ["cut.jpg"]
    assert len(found.rows) == 12
    assert len({row.caption for row in found.rows}) > 1
    term = writer.objective.terms["captions"]
    for row in found.rows:
        places = writer.encode_images([row.image]).parts
        [wanted] = beam_search(term.decoder, places, words=term.words, beams=3, most=6)
        assert row.caption == spelled(writer.tokenizer, [wanted.tokens])[0]
        assert row.score == pytest.approx(wanted.score, abs=1e-4)


def test_draws_do_not_depend_on_the_batch_and_do_on_the_seed(writer, photos):
    def drawn(seed, batch):
        found = caption(writer, [photos], manner=Manner(nucleus=0.9, seed=seed), batch=batch)
        return [row.caption for row in found.rows]

    assert drawn(0, 4) == drawn(0, 12) != drawn(1, 12)


def test_the_table_can_be_read_again(writer, photos, tmp_path):
    found = caption(writer, [photos], manner=Manner(beams=1))
    found.save(tmp_path / "new" / "captions.csv")
    with (tmp_path / "new" / "captions.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["image"], row["caption"]) for row in rows] == [(row.id, row.caption) for row in found.rows]
    assert float(rows[0]["score"]) == pytest.approx(found.rows[0].score, abs=1e-4)
    with pytest.raises(UserError, match="cannot write"):
        found.save(photos / "notes.txt" / "a.csv")


def test_captions_are_judged_by_those_of_the_same_path_or_file_name(writer, photos, tmp_path):
    found = caption(writer, [photos / "flower"], manner=Manner(beams=1))
    rows = [f"{photos}/flower/{k}.jpg,{row.caption}" for k, row in enumerate(found.rows)]
    table = tmp_path / "captions.csv"
    table.write_text("\n".join(["file,title", *rows[:4], f"{photos}/temple/1.jpg,something else"]))
    same = judge(found, references([f"{table}?image=file&text=title"]))
    assert same.pictures == 4
    assert same.scores["BLEU-1"] == pytest.approx(1)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(photos / "flower", elsewhere)
    moved = caption(writer, [elsewhere], manner=Manner(beams=1))
    assert (
        judge(moved, references([f"{table}?image=file&text=title"])).pictures == 3
    )  # another picture is called 1.jpg too
    shutil.copy(photos / "temple" / "1.jpg", tmp_path / "other.jpg")
    table.write_text("file,title\nother.jpg,something else\n")
    with pytest.raises(UserError, match="none of the 6 pictures is among the 1 that"):
        judge(found, references([f"{table}?image=file&text=title"]))


def test_data_without_captions_is_no_reference(photos):
    with pytest.raises(UserError, match="has no picture with a caption"):
        references([str(photos / "flower")])


def test_models_that_write_nothing_and_manners_without_sense_are_refused(writer, model, classifier, photos):
    for other in (model, classifier):
        with pytest.raises(UserError, match="which writes no captions; train one that does"):
            caption(other, [photos])
    for manner in (Manner(beams=0), Manner(most=0)):
        with pytest.raises(UserError, match="must be at least 1"):
            caption(writer, [photos], manner=manner)
    with pytest.raises(UserError, match="the nucleus is 1.5"):
        caption(writer, [photos], manner=Manner(nucleus=1.5))
    with pytest.raises(UserError, match="none of the 1 pictures can be read"):
        caption(writer, [photos / "cut.jpg"])


def test_a_caption_is_never_longer_than_the_model_can_write(writer, photos):
    found = caption(writer, [photos / "flower"], manner=Manner(most=1000))
    assert all(len(writer.tokenizer([row.caption])[0][0]) <= 60 for row in found.rows)
    short = caption(writer, [photos / "flower"], manner=Manner(most=1))
    assert all(len(row.caption.split()) <= 1 for row in short.rows)


def test_what_is_shown(writer, photos):
    found = caption(writer, [photos], manner=Manner(beams=1))
    console = Console(record=True, width=300)
    show(found, console=console, judged=Judged(scores={"BLEU-1": 0.5, "CIDEr": 1.25}, pictures=3))
    said = console.export_text()
    assert found.rows[0].id in said
    assert "captions of 12 pictures; 1 cannot be read" in said
    assert "BLEU-1 0.500, CIDEr 1.250, over 3 pictures" in said
    show(Captions(rows=found.rows, skipped=()), console=console, rows=False)
    assert found.rows[0].id not in console.export_text()


def test_a_picture_of_one_colour_has_a_caption(writer, tmp_path):
    Image.new("L", (3, 50)).save(tmp_path / "a.png")
    assert len(caption(writer, [tmp_path]).rows) == 1
