from pathlib import Path

import pytest
import torch

from unicl.errors import UserError
from unicl.use.query import Query, Term


@pytest.fixture
def photo(photos, monkeypatch):
    monkeypatch.chdir(photos)
    return "temple/0.jpg"


def test_text_is_text():
    assert Query.parse("a red fruit").terms == (Term("a red fruit"),)
    assert Query.parse("a t-shirt, 2+2").terms == (Term("a t-shirt, 2+2"),)
    assert Query.parse("红色的水果").terms == (Term("红色的水果"),)


def test_signs_between_blanks_add_and_take_away(photo):
    parsed = Query.parse(f"{photo} + red - night")
    assert parsed.terms == (Term(Path(photo)), Term("red"), Term("night", -1.0))
    assert str(parsed) == "0.jpg + red - night"
    assert parsed.pictures == (Path(photo),)
    assert Query.parse("- night + day").terms == (Term("night", -1.0), Term("day"))
    assert Query.parse("red － night ＋ day").terms == (Term("red"), Term("night", -1.0), Term("day"))


def test_a_picture_whose_name_holds_a_sign_is_a_picture(photo, photos):
    (photos / photo).rename(photos / "a - b.jpg")
    assert Query.parse("a - b.jpg").terms == (Term(Path("a - b.jpg")),)


@pytest.mark.parametrize("text", ["", "  ", "+", " - "])
def test_an_empty_query_is_told(text):
    with pytest.raises(UserError, match="query is empty"):
        Query.parse(text)


@pytest.mark.parametrize("text", ["red +", "red + - blue", "photo +  + red"])
def test_a_sign_with_nothing_after_it_is_told(text):
    with pytest.raises(UserError, match="sign with nothing after it"):
        Query.parse(text)


def test_a_picture_that_is_not_there_is_told(photos, monkeypatch):
    monkeypatch.chdir(photos)
    with pytest.raises(UserError, match=r"'temple/9.jpg' is not there"):
        Query.parse("temple/9.jpg + red")
    with pytest.raises(UserError, match="not there .did you mean '0.jpg'"):
        Query.parse("temple/0.jpeg")


def test_the_vector_is_the_normalised_sum_of_unit_vectors(model, photo):
    red, night = model.embed_text(["red", "night"])
    image = model.embed_image([photo])[0]
    total = image + red - night
    found = Query.parse(f"{photo} + red - night").vector(model)
    assert torch.allclose(found, total / total.norm(), atol=1e-6)
    half = Query((Term("red"), Term("night", -0.5))).vector(model)
    assert torch.allclose(half, torch.nn.functional.normalize(red - 0.5 * night, dim=0), atol=1e-6)
    assert str(Query((Term("red"), Term("night", -0.5)))) == "red - 0.5 night"


def test_parts_that_cancel_out_or_cannot_be_read_are_told(model, classifier, photo):
    with pytest.raises(UserError, match="cancel each other out"):
        Query.parse("red - red").vector(model)
    with pytest.raises(UserError, match=r"'cut.jpg' cannot be read"):
        Query.parse("cut.jpg").vector(model)
    with pytest.raises(UserError, match="is not there"):
        Query((Term(Path("gone.jpg")),)).vector(model)
    with pytest.raises(UserError, match="no text tower"):
        Query.parse("red").vector(classifier)
    assert Query.parse(photo).vector(classifier).shape == (16,)


def test_one_text_alone_is_a_text(photo):
    assert Query.parse("a red fruit").text == "a red fruit"
    assert Query((Term("red", 2.0),)).text == "red"
    for query in ("- red", "red + blue", photo):
        assert Query.parse(query).text is None
