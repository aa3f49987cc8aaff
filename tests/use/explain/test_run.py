import numpy as np
import pytest
import torch
from PIL import Image

from pictures import picture
from unicl.compare import scores
from unicl.data.image import fit
from unicl.errors import UserError
from unicl.use.explain.run import explain

TEXT = "a photo of a balloon."
METHODS = {
    "filip": "products",
    "wukong": "products",
    "gloria": "attention",
    "clip": "gradients",
    "unicl": "gradients",
    "florence": "gradients",
    "itl": "gradients",
    "siglip": "gradients",
}


def embedded(model, flower, text):
    pixels = torch.from_numpy(np.array(flower)).permute(2, 0, 1)
    square = fit(pixels, size=32, frame=model.settings.image.frame)[None]
    return model.encode_images(square), model.encode_texts([text])


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_with_texts_is_explained_by_its_own_score(made, flower, name):
    model = made(name)
    found = explain(model, flower, TEXT)
    assert found.method == METHODS[name]
    side = found.whole.shape[0]
    assert found.whole.shape == (side, side)
    assert found.heat.shape == (len(found.words), side, side)
    assert len(found.scores) == len(found.words)
    assert torch.isfinite(found.heat).all()
    _, by_text = scores(model, *embedded(model, flower, TEXT), view="instances")
    assert found.score == pytest.approx(float(by_text[0, 0]), abs=1e-5)


def test_products_are_those_of_parts_place_by_place(made, flower):
    model = made("filip")
    found = explain(model, flower, TEXT, label="balloon")
    images, texts = embedded(model, flower, TEXT)
    places, parts = images.parts.values[0].tolist(), texts.parts.values[0].tolist()
    table = [[sum(x * y for x, y in zip(place, part, strict=True)) for place in places] for part in parts]
    best = [max(range(len(parts)), key=lambda q, p=p: table[q][p]) for p in range(len(places))]
    assert found.index.best.flatten().tolist() == best
    assert found.words == ("a", "photo", "of", "a", "balloon")
    assert found.index.wanted == (len(parts) - 3,), "before the dot and the end"
    wanted = [max(table[q][p] for q in found.index.wanted) for p in range(len(places))]
    assert found.heat[4].flatten().tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(found.whole, found.heat.amax(0))
    assert torch.equal(found.index.hits, torch.isin(found.best, torch.tensor(found.index.wanted)))


def test_reduced_places_are_shown_by_what_looks_at_them(made, flower):
    found = explain(made("wukong"), flower, TEXT)
    assert found.whole.numel() > 3
    assert any("3 learned means" in note for note in found.notes)


def test_a_word_alone_looks_everywhere_and_is_told_so(made, flower):
    found = explain(made("gloria"), flower, "balloon")
    assert float(found.heat.max() - found.heat.min()) < 1e-6
    assert any("name more things" in note for note in found.notes)
    assert explain(made("gloria"), flower, TEXT).notes == ()


def test_a_text_that_is_cut_says_so(made, flower):
    assert any("last words are left out" in note for note in explain(made("clip"), flower, "balloon " * 90).notes)


def test_a_label_fills_the_template_and_is_what_the_index_looks_for(made, flower):
    found = explain(made("filip"), flower, "a photo of a {label}.", label="red square")
    assert found.text == "a photo of a red square."
    assert found.index.label == "red square"


def test_the_view_of_classes_is_explained_as_classes_are_compared(made, flower):
    model = made("itl")
    _, by_text = scores(model, *embedded(model, flower, TEXT), view="classes")
    assert explain(model, flower, TEXT, view="classes").score == pytest.approx(float(by_text[0, 0]), abs=1e-5)


def test_a_classifier_explains_its_classes(made, flower):
    model = made("cross_entropy")
    found = explain(model, flower, "red, blue")
    assert found.words == ("red", "blue")
    assert found.score == pytest.approx(sum(found.scores))
    assert 0 < found.score < 1
    with pytest.raises(UserError, match="pear"):
        explain(model, flower, "red, pear")
    with pytest.raises(UserError, match="no text tower"):
        explain(model, flower, "red", label="red")


def test_a_score_that_no_place_speaks_for_is_named(made, flower):
    found = explain(made("cross_entropy"), flower, "red, green, blue")
    silent = [word for word, heat in zip(found.words, found.heat, strict=True) if not heat.any()]
    assert [word for word in found.words if any(f'"{word}"' in note for note in found.notes)] == silent


def test_a_model_without_texts_or_classes_cannot_be_explained(made, flower):
    with pytest.raises(UserError, match="neither texts nor classes"):
        explain(made("supcon"), flower, "red")


def test_a_map_of_a_convolution_is_explained_too(made, flower):
    found = explain(made("clip", tower="resnet10t"), flower, TEXT)
    assert found.whole.shape == (1, 1)


def test_explaining_leaves_the_model_as_it_was(made, flower):
    model = made("clip")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    explain(model, flower, TEXT)
    assert model.training
    model.eval()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 48)])
def test_any_size_of_picture_is_explained_in_its_own_pixels(made, size):
    found = explain(made("filip"), Image.new("RGB", size, "#aa3322"), TEXT)
    assert found.picture.size == size
    x, y = found.point(*found.peak(0))
    assert found.area.left <= x <= found.area.right
    assert found.area.top <= y <= found.area.bottom


def test_a_picture_comes_as_a_file_or_as_bytes(made, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    by_file = explain(made("filip"), str(tmp_path / "a.png"), TEXT)
    assert torch.equal(by_file.heat, explain(made("filip"), picture(), TEXT).heat)
    (tmp_path / "cut.png").write_bytes(picture()[:60])
    for name in ("cut.png", "missing.png"):
        with pytest.raises(UserError, match=f"{name}.*cannot be used"):
            explain(made("filip"), str(tmp_path / name), TEXT)


@pytest.mark.parametrize("name", ["filip", "gloria", "clip"])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_an_error(made, flower, name, text):
    with pytest.raises(UserError, match="the text is empty"):
        explain(made(name), flower, text)
