"""Models in and out as settings and tensors: nothing changes on the way, and what does not fit is said."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.lookup import find as find_recipe
from unicl.lookup import names
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ContrastSettings, DistillSettings
from unicl.published import adopt, fill_model, find, is_own, load, model_of, publish, read_published, teach
from unicl.recipes import clip, cross_entropy, filip, itl, siglip, supcon
from unicl.run import build_model
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings

TOKENIZER = train_tokenizer(["a red square", "a blue one", "the green"], vocab_size=300, context=16)
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEXTS = ["a red square", "one", "the blue green red square of a blue one and of more than the context can hold"]


def made(*, dims=8, head="linear", scale=20.0, text_head="linear"):
    torch.manual_seed(1)
    captions = ContrastSettings(texts="captions", scale=ScaleSettings(init=scale))
    classes = ContrastSettings(name="classes", texts="classes", dims=dims, scale=ScaleSettings(init=5.0))
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32, head=head),
        text=TextSettings(layers=1, dim=32, heads=2, context=16, head=text_head),
        width=16 if head != "none" else 64,
        terms=(captions, classes) if dims else (captions,),
        recipe="itl",
    )
    return TwoTowers(settings, tokenizer=TOKENIZER).eval()


def same(first, second, *, view="instances"):
    assert torch.equal(first.embed_image(IMAGES, view=view), second.embed_image(IMAGES))
    assert torch.equal(first.embed_text(TEXTS, view=view), second.embed_text(TEXTS))


@pytest.mark.parametrize("head", ["linear", "affine", "mlp", "pooler"])
def test_each_view_of_a_nested_model_is_a_model_of_its_own_width_and_scale(head):
    model = made(head=head, text_head=head)
    whole, prefix = publish(model), publish(model, view="classes")
    assert (whole.width, prefix.width) == (16, 8)
    same(model, model_of(whole))
    for embed, what in (("embed_image", IMAGES), ("embed_text", TEXTS)):
        ours = getattr(model, embed)(what, view="classes")
        assert torch.allclose(getattr(model_of(prefix), embed)(what), ours, atol=1e-6)
    assert whole.scale == pytest.approx(20)
    assert prefix.scale == pytest.approx(5)


@pytest.mark.parametrize("head", ["none", "gelu_half"])
def test_a_head_that_cannot_be_narrowed_is_named(head):
    with pytest.raises(UserError, match=f"the head '{head}' gives"):
        publish(made(head=head), view="classes")


def test_load_reads_our_folders_and_says_where_it_looked(tmp_path):
    model = made()
    model.save(tmp_path / "m")
    assert is_own(tmp_path / "m")
    same(model, load(tmp_path / "m"))
    same(model, model_of(read_published(tmp_path / "m")))
    with pytest.raises(UserError, match="no model at 'nowhere.pt'"):
        find("nowhere.pt")
    save_file({"some.thing": torch.ones(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="in no layout that is known"):
        load(tmp_path / "odd.safetensors")


def test_a_recipe_takes_over_towers_width_and_scale_and_keeps_how_it_trains():
    published = publish(made(dims=None))
    recipe = itl(width=16)
    recipe = replace(recipe, image=replace(recipe.image, locked=True, drop_path=0.1))
    started = adopt(recipe, published)
    assert (started.image.name, started.image.size, started.image.weights) == ("test_vit", 32, "random")
    assert started.image.locked
    assert started.image.drop_path == 0.1
    assert [term.scale.init for term in started.terms] == [pytest.approx(20)] * 2
    model = build_model(started, (), tokenizer=TOKENIZER)
    fill_model(model, published)
    same(made(dims=None), model.eval())


def test_a_recipe_of_another_width_or_loss_is_told_apart():
    published = publish(made(dims=None))
    with pytest.raises(UserError, match="16 dimensions, but the recipe 'clip' wants 512"):
        adopt(clip(), published)
    with pytest.raises(UserError, match="is a text tower, and the recipe 'supcon' reads no texts"):
        adopt(supcon(), replace(published, image=None))
    kept = adopt(replace(siglip(), width=16), published)
    assert kept.terms == siglip().terms
    hot = adopt(replace(clip(), width=16), publish(made(dims=None, scale=150.0)))
    assert hot.terms[0].scale.init == 100


def test_an_image_tower_alone_starts_the_image_tower_alone():
    pair = publish(made(dims=None))
    alone = replace(pair, text=None, state={k: v for k, v in pair.state.items() if k.startswith("image.")})
    started = adopt(clip(), alone)
    assert (started.width, started.image.name, started.image.head) == (512, "test_vit", "linear")
    assert started.text == clip().text
    recipe = replace(started, text=replace(started.text, layers=1, dim=32, heads=2))
    model = build_model(recipe, (), tokenizer=TOKENIZER)
    fill_model(model, alone)
    assert torch.equal(model.image_features(IMAGES), made(dims=None).image_features(IMAGES))
    with pytest.raises(UserError, match="holds a text tower alone"):
        model_of(replace(pair, image=None))


def test_a_pair_starts_a_recipe_without_texts_from_its_backbone():
    published = publish(made(dims=None))
    recipe = adopt(supcon(), published)
    assert recipe.image.head == "mlp"
    assert adopt(cross_entropy(), published).image.head == "none"
    model = build_model(recipe, (), tokenizer=None)
    fill_model(model, published)
    assert torch.equal(model.image_features(IMAGES), made(dims=None).image_features(IMAGES))


def test_what_does_not_fit_is_named():
    published = publish(made(dims=None))
    model = made(dims=None)
    lacking = {k: v for k, v in published.state.items() if k != "image.backbone.norm.weight"}
    with pytest.raises(UserError, match="1 missing .*backbone.norm.weight"):
        fill_model(model, replace(published, state=lacking))
    other = published.state | {"text.head.weight": torch.zeros(16, 8)}
    with pytest.raises(UserError, match=r"head.weight is \(16, 8\) there, \(16, 32\) here"):
        fill_model(model, replace(published, state=other))


def test_every_recipe_can_start_from_a_pair():
    published = publish(made(dims=None))
    for name in names():
        make = find_recipe(name)
        recipe = make(width=16) if name == "itl" else replace(make(), width=16)
        taken = adopt(recipe, published)
        assert taken.image.name == "test_vit"
        assert taken.image.parts == recipe.image.parts
        assert (taken.image.pool == "parts") == (recipe.image.pool == "parts")


def test_a_recipe_of_parts_starts_from_a_pair_without_any_and_the_other_way_round():
    pair = made(dims=None)
    recipe = adopt(replace(filip(), width=16), publish(pair))
    model = build_model(recipe, (), tokenizer=TOKENIZER).eval()
    fill_model(model, publish(pair))
    # Patches go through the backbone and the head that whole vectors had.
    with torch.no_grad():
        states = model.image.backbone.forward_features(pair.image._scaled(IMAGES))[:, 1:]
        wanted = torch.nn.functional.normalize(pair.image.head(states), dim=-1)
    torch.testing.assert_close(model.encode_images(IMAGES).parts.values, wanted, rtol=1e-4, atol=1e-5)
    back = adopt(replace(clip(), width=16), publish(model))
    assert (back.image.parts, back.text.parts) == (None, None)
    again = build_model(back, (), tokenizer=TOKENIZER).eval()
    fill_model(again, publish(model))
    same(pair, again)


def test_a_teacher_looks_at_pictures_at_its_own_size_and_is_no_part_of_the_model(tmp_path):
    def tower(side, *terms):
        image = ImageSettings(name="test_vit", size=side)
        return TwoTowers(ModelSettings(image=image, text=None, width=8, terms=terms), tokenizer=None).eval()

    teacher, student = tower(32), tower(48, DistillSettings(teacher=str(tmp_path)))
    teacher.save(tmp_path)
    before = set(student.state_dict())
    teach(student)
    # Plain pictures are the same at any size.
    pixels = torch.tensor([90, 200], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 48, 48)
    expected = teacher.embed_image(pixels[..., :32, :32].contiguous())
    assert torch.allclose(student.teacher(pixels), expected, atol=1e-5)
    assert set(student.state_dict()) == before
    with pytest.raises(UserError, match="--cache off"):
        student.teacher(torch.zeros(2, 8))
