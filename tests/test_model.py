import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unicl.data.text import train_tokenizer
from unicl.errors import BadImage, UserError
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.objective.terms import ClassifySettings, ClassName, ContrastSettings
from unicl.space import Batch, Keys
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings

TOKENIZER = train_tokenizer(["a red square", "a photo of something blue", "蓝色"], vocab_size=300, context=16)
NESTED = (ContrastSettings(texts="captions"), ContrastSettings(name="classes", texts="classes", dims=8))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32),
        text=TextSettings(layers=1, dim=32, heads=2, dropout=0.5),
        width=16,
        terms=NESTED,
        recipe="itl",
    )
    return TwoTowers(settings, tokenizer=TOKENIZER)


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_pictures_may_be_paths_bytes_pil_or_tensors(model, photo):
    kinds = [[photo], [str(photo)], [photo.read_bytes()], [Image.open(photo)]]
    vectors = [model.embed_image(images) for images in kinds]
    assert all(torch.equal(v, vectors[0]) for v in vectors)
    assert vectors[0].shape == (1, 16)
    assert torch.allclose(vectors[0].norm(dim=1), torch.ones(1))
    assert model.embed_image(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, 16)


def test_the_class_view_is_the_prefix_at_unit_length(model, photo):
    whole, classes = model.embed_image([photo]), model.embed_image([photo], view="classes")
    assert classes.shape == (1, 8)
    assert torch.allclose(classes, torch.nn.functional.normalize(whole[:, :8], dim=1))
    assert model.embed_text(["a red square"], view="classes").shape == (1, 8)
    assert model.similarity([photo], ["a", "b"], view="classes").shape == (1, 2)


def test_embedding_does_not_depend_on_the_batch_nor_on_training_mode(model):
    texts = ["a red square", "a photo of something blue that is rather long", "蓝色"]
    model.train()
    together = model.embed_text(texts)
    assert model.training, "it is left as it was"
    alone = torch.cat([model.embed_text([text], batch=1) for text in texts])
    assert torch.allclose(together, alone, atol=1e-6)


def test_a_classifier_averages_normalised_templates_and_normalises_again(model):
    templates = ["a photo of a {}.", "{}"]
    made = model.classifier(["red", "blue"], templates=templates)
    each = model.embed_text(["a photo of a blue.", "blue"], view="classes")
    assert torch.allclose(made[1], torch.nn.functional.normalize(each.mean(0), dim=0), atol=1e-6)
    with pytest.raises(UserError, match="at least one"):
        model.classifier([], templates=templates)


def test_each_distinct_text_is_encoded_once_and_shown_where_it_belongs(model):
    tokens, mask = TOKENIZER(["a red square", "蓝色"])
    index = torch.tensor([1, 0, 1])
    batch = Batch(
        images=torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        image_keys=Keys.empty(2),
        tokens=tokens,
        token_mask=mask,
        text_index=index,
        text_keys=Keys.empty(3),
        text_counts=torch.ones(3),
    )
    columns = model.eval()(batch)
    assert torch.allclose(columns.texts.whole, model.embed_text(["蓝色", "a red square", "蓝色"]), atol=1e-6)


def test_the_folder_says_which_view_is_for_what_and_opens_without_the_original(model, tmp_path):
    model.save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["views"] == {"instances": None, "classes": 8}
    again = load_model(tmp_path / "m")
    assert torch.equal(again.embed_text(["a red square"]), model.embed_text(["a red square"]))
    assert math.isclose(again.scale("classes"), 1 / 0.07, rel_tol=1e-5)


def test_a_transformers_folder_travels_with_the_model(tmp_path):
    from transformers import BertConfig

    folder = tmp_path / "bert"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(vocab_size=TOKENIZER.vocab_size, **sizes).save_pretrained(folder)
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32), text=TextSettings(name=str(folder)), width=8
    )
    made = TwoTowers(settings, tokenizer=TOKENIZER)
    made.save(tmp_path / "m")
    folder.rename(tmp_path / "gone")
    again = load_model(tmp_path / "m")
    assert torch.equal(again.embed_text(["a red square"]), made.embed_text(["a red square"]))


def test_wrong_folders_and_weights_are_clear_errors(model, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)
    model.save(tmp_path / "m")
    wider = json.loads((tmp_path / "m" / "config.json").read_text()) | {"width": 24}
    (tmp_path / "m" / "config.json").write_text(json.dumps(wider))
    with pytest.raises(UserError, match="do not fit"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"width": "many"}')
    with pytest.raises(UserError, match="not a unicl model"):
        load_model(tmp_path / "m")


def test_a_classifier_head_has_its_own_classes_and_no_texts(photo):
    classes = tuple(ClassName(label=name, key=key) for name, key in (("red", 5), ("blue", 9)))
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32, head="none"),
        text=None,
        width=64,
        terms=(ClassifySettings(),),
        classes=classes,
        recipe="cross_entropy",
    )
    made = TwoTowers(replace(settings, width=_width(settings)), tokenizer=None)
    logits = made.embed_image([photo], view="classes") @ made.classifier(["blue", "red"], templates=()).T
    head = made.objective.terms["classes"].head(made.image_features([photo]))
    assert torch.allclose(logits, head[:, [1, 0]], atol=1e-5)
    with pytest.raises(UserError, match="no text tower"):
        made.embed_text(["x"])
    with pytest.raises(UserError, match="'green' is none"):
        made.classifier(["green"], templates=())


def test_a_picture_that_cannot_be_read_says_so(model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(BadImage):
        model.embed_image([tmp_path / "bad.jpg"])


def _width(settings):
    from unicl.towers.image import ImageTower

    return ImageTower(replace(settings.image, head="linear"), width=1).feature_width
