import pytest
import timm
import torch
from torch import nn

from unicl.compare import scores
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ClassifySettings, ClassName
from unicl.towers.image import ImageSettings
from unicl.use.explain.attribute import agreements, attribute, still

CLASSES = tuple(ClassName(label=str(k), key=k + 1) for k in range(3))
TOWERS = ["resnet10t", "efficientnet_lite0", "convnext_atto", "test_vit", "test_vit3", "test_mambaout"]


def classifier(name, **image):
    torch.manual_seed(0)
    settings = ImageSettings(name=name, size=64, **image)
    terms = (ClassifySettings(),)
    model = TwoTowers(ModelSettings(image=settings, text=None, width=32, terms=terms, classes=CLASSES), tokenizer=None)
    return model.eval()


def pixels(side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, side, side), generator=generator, dtype=torch.uint8)


def logits(model):
    head = model.objective.terms["classes"].head
    return lambda images: head(images.features)[0]


def test_behind_a_mean_of_places_it_is_the_class_activation_map():
    model = classifier("resnet10t")
    heat, found = attribute(model, pixels(), score=logits(model))
    with torch.no_grad():
        states = model.image.backbone.forward_features(model.image._scaled(pixels()))[0]
        head = model.objective.terms["classes"].head
        maps = torch.einsum("cf,fhw->chw", head.weight, states) / (states.shape[1] * states.shape[2])
    torch.testing.assert_close(heat, maps.clamp(min=0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found, maps.sum((1, 2)) + head.bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in TOWERS if timm.is_model(name)])
def test_towers_of_all_kinds_have_places(name):
    model = classifier(name)
    heat, found = attribute(model, pixels(), score=logits(model))
    assert heat.shape[0] == 3
    assert heat.shape[1] == heat.shape[2] > 1
    assert torch.isfinite(heat).all()
    assert float(heat.min()) >= 0
    assert float(heat.max()) > 1e-7
    with torch.no_grad():
        torch.testing.assert_close(found, logits(model)(model.image(pixels())))


@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_a_transformer_is_read_where_its_pool_reads(pool):
    model = classifier("test_vit", pool=pool)
    heat, _ = attribute(model, pixels(), score=logits(model))
    assert heat.shape == (3, 4, 4)
    assert float(heat.max()) > 1e-7


def test_a_map_under_a_learned_query_has_places():
    model = classifier("resnet10t", pool="map")
    score = logits(model)
    heat, _ = attribute(model, pixels(), score=lambda images: torch.cat([score(images), -score(images)]))
    assert heat.shape == (6, 2, 2)
    assert (heat[:3] * heat[3:]).abs().max() == 0, "a place speaks for a score or against it"
    assert ((heat[:3] + heat[3:]) > 1e-7).all()


def test_a_transformer_that_windows_its_map_has_places():
    options = {"window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 24}
    model = classifier("swin_tiny_patch4_window7_224", options=options)
    heat, _ = attribute(model, pixels(), score=logits(model))
    assert heat.shape == (3, 2, 2)


def test_what_speaks_for_a_class_token_lies_where_its_value_comes_from():
    """A tower whose score is what the class token reads off bright patches: the bright quarter is hot."""
    model = classifier("test_vit", pool="token")
    square = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    square[..., 32:, :32] = 255
    with torch.no_grad():
        bright, dark = (model.image(torch.full_like(square, value)).features[0] for value in (255, 0))
    heat, _ = attribute(model, square, score=lambda images: (images.features @ (bright - dark)).view(1))
    lower = heat[0, 2:, :2].mean()
    assert lower > heat[0, :2].mean()
    assert lower > heat[0, :, 2:].mean()


@pytest.mark.parametrize("image", [{"locked": True}, {"checkpointing": True}, {"lora": 2}])
@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_locked_adapted_and_thrifty_towers_are_explained_and_left_as_they_were(name, image):
    if name == "resnet10t" and "lora" in image:
        pytest.skip("adapters are for transformers")
    model, plain = classifier(name, **image), classifier(name)
    if "lora" not in image:
        plain.load_state_dict(model.state_dict())
    model.train()
    before = {m: m.training for m in model.modules()}
    heat, _ = attribute(model, pixels(), score=logits(model))
    assert {m: m.training for m in model.modules()} == before
    assert model.image.locked == image.get("locked", False)
    assert all(p.grad is None for p in model.parameters())
    assert "forward_features" not in vars(model.image.backbone)
    if "lora" not in image:
        wanted, _ = attribute(plain, pixels(), score=logits(plain))
        torch.testing.assert_close(heat, wanted)


def test_a_model_in_training_answers_as_one_that_is_not():
    model = classifier("resnet10t", dropout=0.5)
    wanted, _ = attribute(model, pixels(), score=logits(model))
    found, _ = attribute(model.train(), pixels(), score=logits(model))
    assert torch.equal(found, wanted)


def test_a_failure_leaves_the_tower_as_it_was():
    model = classifier("resnet10t").train()

    def broken(_images):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        attribute(model, pixels(), score=broken)
    assert model.training
    assert "forward_features" not in vars(model.image.backbone)


def test_a_tower_without_places_says_so():
    model = classifier("resnet10t")

    class Flat(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)).repeat(1, 512)[:, :512]

        def forward_features(self, _images):
            raise AssertionError

    model.image.backbone = Flat()
    with pytest.raises(UserError, match="no map of places"):
        attribute(model, pixels(), score=logits(model))


@pytest.mark.parametrize("name", ["clip", "itl", "filip", "gloria"])
@pytest.mark.parametrize("view", ["instances", "classes"])
def test_agreements_are_the_scores_by_which_texts_find_pictures(made, name, view):
    model = made(name)
    images, texts = model.encode_images(pixels(32)), model.encode_texts(["a red square", "a balloon"])
    found = agreements(model, images, texts, view=view)
    torch.testing.assert_close(found, scores(model, images, texts, view=view)[1])


def test_evaluation_with_gradients_ends(made):
    model = made("clip").train()
    with still(model):
        assert not model.training
    assert model.training
    model.eval()
