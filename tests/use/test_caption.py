"""Captions of photographs by a small model of random weights: how they are written, listed and compared."""

import csv
import itertools
import shutil
from contextlib import contextmanager

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
        with pytest.raises(UserError, match="has no term that writes captions; train one that does"):
            caption(other, [photos])
    for manner in (Manner(beams=0), Manner(most=0)):
        with pytest.raises(UserError, match="must be at least 1"):
            caption(writer, [photos], manner=manner)
    with pytest.raises(UserError, match="the nucleus is 1.5"):
        caption(writer, [photos], manner=Manner(nucleus=1.5))
    with pytest.raises(UserError, match="none of the 1 pictures can be read"):
        caption(writer, [photos / "cut.jpg"])


class Stop(BaseException):
    """As a kill: nothing catches it."""


@contextmanager
def watched(writer, *, stop=None):
    """How many pictures each batch has that the tower sees; ends at the batch of that number."""
    seen = []

    def look(_tower, images):
        if len(seen) == stop:
            raise Stop
        seen.append(len(images[0]))

    handle = writer.image.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def stopped(writer, paths, *, after, **settings):
    """Captioning that ends when so many batches are done."""
    with watched(writer, stop=after), pytest.raises(Stop):
        caption(writer, paths, **settings)


@pytest.mark.parametrize("torn", [0, 40])
def test_a_run_that_was_stopped_goes_on_and_its_table_is_that_of_one_that_was_not(writer, photos, tmp_path, torn):
    manner = Manner(beams=2, most=6)
    caption(writer, [photos], manner=manner, batch=4, out=tmp_path / "whole.csv")
    out, kept = tmp_path / "new" / "a.csv", tmp_path / "new" / "a.unfinished.jsonl"
    stopped(writer, [photos], after=2, manner=manner, batch=4, out=out)
    assert not out.exists()
    kept.write_bytes(kept.read_bytes()[: -torn or None])
    with watched(writer) as seen:
        found = caption(writer, [photos], manner=manner, batch=4, out=out)
    # The batch of a line that was cut off is done again, with all its pictures.
    assert seen == ([4] if torn else []) + [4, 1]
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert len(found.rows) == 12
    assert not kept.exists()
    listed = [(tmp_path / name).read_text() for name in ("whole.quarantine.jsonl", "new/a.quarantine.jsonl")]
    assert listed[0] == listed[1]
    assert listed[0].count("\n") == len(found.skipped) == 1


def test_a_picture_that_changed_or_came_since_is_looked_at_and_one_that_went_is_left_out(writer, photos, tmp_path):
    folder, out = photos / "flower", tmp_path / "a.csv"
    stopped(writer, [folder], after=5, batch=1, out=out)
    shutil.copy(photos / "temple" / "1.jpg", folder / "1.jpg")
    (folder / "2.jpg").unlink()
    shutil.copy(photos / "temple" / "2.jpg", folder / "9.jpg")
    with watched(writer) as seen:
        found = caption(writer, [folder], batch=1, out=out)
    # 1.jpg is another picture, 5.jpg was still to come, 9.jpg is new.
    assert seen == [1, 1, 1]
    assert found.rows == caption(writer, [folder], batch=1).rows


def test_a_stopped_run_is_not_gone_on_with_in_another_manner(writer, photos, tmp_path):
    stopped(writer, [photos], after=1, manner=Manner(beams=2), batch=4, out=tmp_path / "a.csv")
    with pytest.raises(UserError, match="beams 2 and not 3, batch 4 and not 5"):
        caption(writer, [photos], manner=Manner(beams=3), batch=5, out=tmp_path / "a.csv")
    caption(writer, [photos], manner=Manner(beams=2), batch=4, out=tmp_path / "a.csv")


def test_too_many_pictures_that_cannot_be_read_end_the_run_which_goes_on_with_a_higher_limit(writer, photos, tmp_path):
    out = tmp_path / "a.csv"
    with pytest.raises(UserError, match="more than --max-bad 0 allows; all are listed in .*a.quarantine.jsonl"):
        caption(writer, [photos], max_bad=0, out=out)
    assert not out.exists()
    assert len(caption(writer, [photos], max_bad=1, out=out).rows) == 12
    assert len((tmp_path / "a.quarantine.jsonl").read_text().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.csv", "a.quarantine.jsonl"]


def test_no_token_stands_right_behind_itself_if_it_may_not(writer, photos):
    bound = caption(writer, [photos / "flower"], manner=Manner(beams=1, most=8, repeats=False))
    term = writer.objective.terms["captions"]
    for row in bound.rows:
        places = writer.encode_images([row.image]).parts
        [wanted] = beam_search(term.decoder, places, words=term.words, beams=1, most=8, repeats=False)
        assert all(one != other for one, other in itertools.pairwise(wanted.tokens))
        assert row.caption == spelled(writer.tokenizer, [wanted.tokens])[0]


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
