"""Scores of parts against plain loops, and classes of several prompts against numbers made by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evaluate_oracles import colour_samples, late_interaction, parts_model, real_parts, tiny_model
from unicl import compare
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, ZeroShotSettings
from unicl.objective.likelihood import log_likelihoods
from unicl.objective.terms import BagSettings, CaptionSettings, ContrastSettings
from unicl.space import Embedding, Parts
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts
from unicl.towers.text import TextSettings

TEXTS = ["a red picture", "number 7", "a photo of a blue picture number 3", "green"]
TEMPLATES = ("a {}", "the {}")
VECTORS = {"a cat": (1.0, 0.0), "the cat": (0.6, 0.8), "a dog": (0.0, 1.0), "the dog": (0.8, 0.6)}
IMAGE = (0.8, 0.6)


class Said(nn.Module):
    """A text tower that knows a vector for each of some texts."""

    def __init__(self, tokenizer, vectors):
        super().__init__()
        self.pool, self.parts = "end", None
        self.known = {self.key(*tokenizer([text])): vector for text, vector in vectors.items()}

    @staticmethod
    def key(tokens, mask):
        return tuple(tokens[0][mask[0].bool()].tolist())

    def forward(self, tokens, mask):
        whole = torch.tensor([self.known[self.key(*row)] for row in zip(tokens[:, None], mask[:, None], strict=True)])
        return Embedding(whole=whole, features=whole[:, :0])


def toy(ensemble, *, standardise=False, learned=10.0):
    """A model of whole vectors in the plane, whose texts are those of `VECTORS`."""
    tokenizer = train_tokenizer(list(VECTORS), vocab_size=300, context=8)
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32),
        text=TextSettings(context=8),
        width=2,
        terms=(ContrastSettings(),),
        zero_shot=ZeroShotSettings(ensemble=ensemble, standardise=standardise),
    )
    model = TwoTowers(settings, tokenizer=tokenizer, text=Said(tokenizer, VECTORS)).eval()
    model.objective.terms["instances"].scale.log_scale.data.fill_(math.log(learned))
    return model


def wholes(*rows):
    whole = torch.tensor(rows)
    return Embedding(whole=whole, features=whole[:, :0])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return [s.image for s in colour_samples(tmp_path_factory.mktemp("compare"), each=2)]


@pytest.fixture(scope="module")
def filip():
    return parts_model()


@pytest.fixture(scope="module")
def columns(filip, pictures):
    return filip.encode_images(pictures), filip.encode_texts(TEXTS)


def test_scores_are_filips_for_each_picture_and_text(filip, columns):
    images, texts = columns
    by_image, by_text = compare.scores(filip, images, texts, view="instances")
    for i in range(8):
        for t in range(4):
            wanted = late_interaction(real_parts(images.parts, i), real_parts(texts.parts, t))
            assert (float(by_image[i, t]), float(by_text[i, t])) == pytest.approx(wanted, abs=1e-5)
    assert not torch.allclose(by_image, by_text)


@pytest.mark.parametrize("products", [1, 700, 3000])
def test_tiles_change_nothing(filip, columns, monkeypatch, products):
    wanted = compare.scores(filip, *columns, view="instances")
    monkeypatch.setattr(compare, "PRODUCTS", products)
    for ours, theirs in zip(compare.scores(filip, *columns, view="instances"), wanted):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_no_tile_has_more_products_than_it_may(columns, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "PRODUCTS", 3000)
    own = tmp_path / "own.py"
    own.write_text(
        "def limited(images, texts):\n"
        "    rows = len(images.whole) * len(texts.whole)\n"
        "    assert rows * images.parts.mask.shape[1] * texts.parts.mask.shape[1] <= 3000\n"
        "    scores = images.whole @ texts.whole.T\n"
        "    return scores, scores\n"
    )
    model = parts_model(terms=(ContrastSettings(similarity=f"{own}:limited"),))
    images, texts = columns
    assert torch.allclose(compare.scores(model, images, texts, view="instances")[0], images.whole @ texts.whole.T)


def test_rows_come_a_few_at_a_time_and_make_the_same_tables(filip, columns, monkeypatch):
    monkeypatch.setattr(compare, "PRODUCTS", 300)
    rows = list(compare.score_rows(filip, *columns, view="instances"))
    assert len(rows) > 1
    assert [(r.start, r.stop) for r, *_ in rows] == [
        (r.start, r.stop) for r, *_ in sorted(rows, key=lambda x: x[0].start)
    ]
    by_image, by_text = compare.scores(filip, *columns, view="instances")
    assert torch.equal(torch.cat([first for _, first, _ in rows]), by_image)
    assert torch.equal(torch.cat([second for *_, second in rows]), by_text)


def test_pairs_are_the_diagonal_of_the_tables(filip, columns):
    images, texts = columns
    first, second = torch.arange(8), torch.arange(8) % 4
    by_image, by_text = compare.scores(filip, images, texts, view="instances")
    ours = compare.pair_scores(filip, images.select(first), texts.select(second), view="instances")
    assert torch.allclose(ours[0], by_image[first, second], atol=1e-6)
    assert torch.allclose(ours[1], by_text[first, second], atol=1e-6)


def test_parts_kept_in_half_score_nearly_the_same_and_wholes_stay(filip, columns):
    images, texts = columns
    kept = compare.kept(filip, images)
    assert kept.parts.values.dtype == torch.float16
    assert torch.equal(kept.whole, images.whole)
    exact, close = (compare.scores(filip, each, texts, view="instances")[0] for each in (images, kept))
    assert torch.allclose(exact, close, atol=2e-3)
    assert close.dtype == torch.float32
    assert compare.kept(tiny_model(), images) is None


def test_nothing_makes_empty_tables(filip, columns):
    images, texts = columns
    none = torch.arange(0)
    assert compare.scores(filip, images.select(none), texts, view="instances")[0].shape == (0, 4)
    assert compare.scores(filip, images, texts.select(none), view="instances")[1].shape == (8, 0)
    assert compare.pair_scores(filip, images.select(none), texts.select(none), view="instances")[0].shape == (0,)


def test_several_terms_are_averaged_by_their_weights_and_read_their_own_dimensions(columns):
    images, texts = columns
    terms = (
        ContrastSettings(name="a", weight=3.0, dims=4),
        ContrastSettings(name="b", weight=1.0, similarity="tokenwise"),
        ContrastSettings(name="c", texts="classes"),
    )
    model = parts_model(terms=terms)
    by_image, by_text = compare.scores(model, images, texts, view="instances")
    cosine = F.normalize(images.whole[:, :4], dim=1) @ F.normalize(texts.whole[:, :4], dim=1).T
    late = compare.scores(parts_model(), images, texts, view="instances")
    assert torch.allclose(by_image, (3 * cosine + late[0]) / 4, atol=1e-6)
    assert torch.allclose(by_text, (3 * cosine + late[1]) / 4, atol=1e-6)
    of_classes = compare.scores(model, images, texts, view="classes")
    assert torch.allclose(of_classes[0], images.whole @ texts.whole.T, atol=1e-6)
    assert (compare.reads_parts(model, "instances"), compare.reads_parts(model, "classes")) == (True, False)
    assert compare.how_compared(model, "instances") == "cosine and tokenwise"


def test_columns_without_parts_are_refused_with_what_to_do(filip, columns):
    images, texts = columns
    with pytest.raises(UserError, match="the image tower gives none"):
        compare.scores(filip, replace(images, parts=None), texts, view="instances")


def test_four_ensembles_of_two_classes_and_two_templates_are_those_by_hand():
    # cat: cosines .8 and .96; dog: .6 and 1
    first, second = 1 / (1 + math.exp(-0.2)), 1 / (1 + math.exp(0.04))
    wanted = {
        "embeddings": (0.88 / math.hypot(0.8, 0.4), 0.8 / math.hypot(0.4, 0.8)),
        "similarities": (0.88, 0.8),
        "probabilities": ((first + second) / 2, 1 - (first + second) / 2),
        "best": (0.96, 1.0),
    }
    for ensemble, values in wanted.items():
        for learned in (1.0, 10.0):
            model = toy(ensemble, learned=learned)
            found = compare.class_scores(model, wholes(IMAGE), ["cat", "dog"], templates=TEMPLATES)
            assert found[0].tolist() == pytest.approx(values, abs=1e-6)
    assert len({round(values[0], 3) for values in wanted.values()}) == 4


def test_the_mean_of_similarities_is_not_the_similarity_of_mean_parts(filip, columns):
    images, _ = columns
    prompts = ("1 red", "9 red")
    texts = filip.encode_texts(prompts)
    assert texts.parts.mask.all(), "equally long, so that parts can be averaged"
    found = compare.class_scores(filip, images, ["red"], templates=("1 {}", "9 {}"))
    each = [
        [late_interaction(real_parts(images.parts, i), real_parts(texts.parts, t))[0] for t in range(2)]
        for i in range(8)
    ]
    assert found[:, 0].tolist() == pytest.approx([sum(row) / 2 for row in each], abs=1e-5)
    mean = texts.parts.values.mean(0, keepdim=True)
    parts = Parts(values=mean, mask=texts.parts.mask[:1])
    of_mean = compare.scores(filip, images, replace(texts.select(slice(0, 1)), parts=parts), view="classes")[0]
    assert (of_mean - found).abs().max() > 1e-3


def test_classes_read_the_way_from_picture_to_text(filip, columns):
    images, _ = columns
    found = compare.class_scores(filip, images, ["red", "blue"], templates=("{}",))
    by_image, by_text = compare.scores(filip, images, filip.encode_texts(["red", "blue"]), view="classes")
    assert torch.allclose(found, by_image, atol=1e-6)
    assert not torch.allclose(found, by_text, atol=1e-3)


@pytest.mark.parametrize("ensemble", ["similarities", "probabilities", "best"])
def test_how_many_prompts_are_encoded_together_changes_nothing(pictures, monkeypatch, ensemble):
    model = parts_model(ensemble)
    images = model.encode_images(pictures)
    ticks = []
    wanted = compare.class_scores(model, images, TEXTS, templates=("a {}", "{}", "x"), tick=lambda: ticks.append(1))
    assert len(ticks) == 3
    monkeypatch.setattr(compare, "TEXTS", 1)
    found = compare.class_scores(model, images, TEXTS, templates=("a {}", "{}", "x"))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_classes_may_have_prompts_of_their_own_and_as_many_as_they_like():
    own = {"cat": ["a cat"], "Dog": ["a dog", "the dog"]}
    assert compare.class_scores(toy("best"), wholes(IMAGE), ["cat", "dog"], templates=own)[0].tolist() == pytest.approx(
        [0.8, 1.0]
    )
    similar = compare.class_scores(toy("similarities"), wholes(IMAGE), ["dog", "cat"], templates=own)
    assert similar[0].tolist() == pytest.approx([0.8, 0.8])
    embedded = compare.class_scores(toy("embeddings"), wholes(IMAGE), ["cat", "dog"], templates=own)
    assert embedded[0].tolist() == pytest.approx([0.8, 0.8 / math.hypot(0.4, 0.8)])
    with pytest.raises(UserError, match="they have 1 to 2; draw as many for each"):
        compare.class_scores(toy("probabilities"), wholes(IMAGE), ["cat", "dog"], templates=own)
    with pytest.raises(UserError, match="none for the class 'dogg' .did you mean 'Dog'"):
        compare.class_scores(toy("best"), wholes(IMAGE), ["cat", "dogg"], templates=own)


def test_no_class_or_no_template_is_an_error():
    for names, templates in (([], TEMPLATES), (["cat"], ())):
        with pytest.raises(UserError, match="at least one"):
            compare.class_scores(toy("best"), wholes(IMAGE), names, templates=templates)


def test_standardised_classes_have_mean_0_and_deviation_1_over_the_pictures():
    rows = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 4.0], [8.0, 5.0, 3.0]])
    found = compare.standardised(rows)
    for c in (0, 2):
        mean = sum(rows[:, c].tolist()) / 3
        deviation = math.sqrt(sum((x - mean) ** 2 for x in rows[:, c].tolist()) / 3)
        assert found[:, c].tolist() == pytest.approx([(x - mean) / deviation for x in rows[:, c].tolist()], abs=1e-6)
    assert found[:, 1].tolist() == [0, 0, 0], "a class that scores all alike says nothing"
    assert torch.equal(compare.standardised(rows[:1]), rows[:1])


def test_a_standardised_model_says_that_its_scores_depend_on_the_set():
    model = toy("best", standardise=True)
    two, three = wholes(IMAGE, (1.0, 0.0)), wholes(IMAGE, (1.0, 0.0), (0.0, 1.0))
    few, many = (compare.class_scores(model, each, ["cat", "dog"], templates=TEMPLATES) for each in (two, three))
    assert few[0].tolist() == pytest.approx([-1, 1], abs=1e-4)
    assert not torch.allclose(few, many[:2], atol=1e-2)
    assert compare.set_note(model, 2) == "z-scored over these 2 pictures: predictions depend on the set"
    assert "a single picture is not z-scored" in compare.set_note(model, 1)
    assert compare.set_note(toy("best"), 2) is None
    one = compare.class_scores(model, wholes(IMAGE), ["cat", "dog"], templates=TEMPLATES)
    assert one[0].tolist() == pytest.approx([0.96, 1.0])


def test_shares_scale_scores_but_not_deviations_or_probabilities():
    scores = torch.tensor([[0.3, 0.1], [0.5, 0.5]])
    for ensemble in ("embeddings", "similarities", "best"):
        assert torch.allclose(compare.class_shares(toy(ensemble), scores, pictures=2), (10 * scores).softmax(1))
    assert torch.equal(compare.class_shares(toy("probabilities"), scores, pictures=2), scores)
    model = toy("best", standardise=True)
    assert torch.allclose(compare.class_shares(model, scores[:1], pictures=2), scores[:1].softmax(1))
    assert torch.allclose(compare.class_shares(model, scores[:1], pictures=1), (10 * scores[:1]).softmax(1))


def test_one_vector_a_class_is_all_that_plain_models_need(pictures):
    model = tiny_model()
    assert compare.classes_by_vectors(model)
    images = model.encode_images(pictures)
    found = compare.class_scores(model, images, ["red", "blue"], templates=TEMPLATES)
    wanted = model.embed_image(pictures, view="classes") @ model.classifier(["red", "blue"], templates=TEMPLATES).T
    assert torch.equal(found, wanted)
    classifier = tiny_model(texts=False, classes=("red", "blue"))
    logits = classifier.objective.terms["classes"].head(classifier.image_features(pictures))
    found = compare.class_scores(classifier, classifier.encode_images(pictures), ["blue", "red"], templates=())
    assert torch.allclose(found, logits[:, [1, 0]], atol=1e-5)
    assert not compare.classes_by_vectors(toy("best"))
    assert not compare.classes_by_vectors(toy("embeddings", standardise=True))


def test_a_model_of_parts_points_to_where_its_scores_are(filip, pictures):
    with pytest.raises(UserError, match=r"unicl.compare.scores\(model"):
        filip.similarity(pictures, TEXTS)
    with pytest.raises(UserError, match=r"unicl.compare.class_scores\(model"):
        filip.classifier(["red", "blue"], templates=TEMPLATES)


def test_comparing_keeps_no_gradient(filip, pictures):
    images = replace(filip.encode_images(pictures), whole=torch.randn(8, 16, requires_grad=True))
    assert not compare.scores(filip, images, filip.encode_texts(TEXTS), view="instances")[0].requires_grad
    assert not compare.class_scores(filip, images, ["red"], templates=("{}",)).requires_grad


def test_the_mean_and_the_maximum_of_prompts_can_be_chosen_for_any_model(pictures):
    model = tiny_model()
    names, templates = ["red", "blue"], ("a {} thing", "{}", "so {}")
    images = model.encode_images(pictures)
    view = model.views_of(images)["classes"]
    cosines = torch.stack(
        [view @ model.embed_text([t.replace("{}", n) for t in templates], view="classes").T for n in names]
    )
    assert compare.together(model, None) is model
    assert model.settings.zero_shot.ensemble == "embeddings"
    for ensemble, expected in (("similarities", cosines.mean(2).T), ("best", cosines.amax(2).T)):
        assert compare.together(model, ensemble).settings.zero_shot.ensemble == ensemble
        torch.testing.assert_close(compare.class_scores(model, images, names, templates=templates), expected)


def telling(term, *, tokenizer=None):
    """A model without a text tower that predicts captions by a term."""
    torch.manual_seed(0)
    parts = ImageParts(head="none", unit=False) if isinstance(term, CaptionSettings) else None
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32, head="none", parts=parts),
        text=None,
        width=64,
        terms=(term,),
        zero_shot=ZeroShotSettings(ensemble="likelihood"),
    )
    tokenizer = tokenizer or train_tokenizer(["a photo of a red cat.", "a dog"], vocab_size=300, context=40)
    return TwoTowers(settings, tokenizer=tokenizer).eval()


CAPTION = CaptionSettings(task="captioning", width=32, heads=2)
NAMES = ["cat", "red dog", "dog"]


@pytest.mark.parametrize("term", [CAPTION, BagSettings()])
def test_a_model_that_predicts_captions_scores_classes_by_how_likely_their_texts_are(term, pictures):
    model = telling(term)
    assert not compare.classes_by_vectors(model)
    assert compare.knows_names(model)
    images = model.encode_images(pictures)
    prompts = compare.usual_prompts(model, NAMES)
    found = compare.class_scores(model, images, NAMES, templates=prompts)
    [teller] = model.objective.terms.values()
    texts = [prompt.replace("{}", name) for name in NAMES for prompt in prompts]
    tokens, mask = model.tokenizer(texts)
    wanted = log_likelihoods(teller, images, tokens, mask=mask)
    torch.testing.assert_close(found, wanted)
    assert texts == (NAMES if isinstance(term, BagSettings) else [f"a photo of a {name}." for name in NAMES])
    torch.testing.assert_close(compare.class_shares(model, found, pictures=8), wanted.softmax(1))
    close = compare.class_scores(model, compare.kept(model, images), NAMES, templates=prompts)
    torch.testing.assert_close(close, found, rtol=2e-3, atol=2e-2)


def test_several_prompts_are_the_mean_of_their_log_likelihoods(pictures):
    model = telling(CAPTION)
    images = model.encode_images(pictures)
    each = [compare.class_scores(model, images, NAMES, templates=(prompt,)) for prompt in ("a {}", "the {} here")]
    both = compare.class_scores(model, images, NAMES, templates=("a {}", "the {} here"))
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_the_usual_prompts_are_those_of_the_language_and_of_what_is_predicted(filip):
    assert compare.usual_prompts(telling(CAPTION), ["猫", "狗"]) == ("一张{}的图片。",)
    assert compare.usual_prompts(telling(BagSettings()), ["猫", "狗"]) == ("{}",)
    assert len(compare.usual_prompts(filip, ["cat"])) > 5


def test_a_likelihood_that_no_term_tells_and_a_name_without_words_are_errors(pictures):
    model = telling(CaptionSettings(task="masked", width=32, heads=2))
    with pytest.raises(UserError, match="has no term that predicts them"):
        compare.class_scores(model, model.encode_images(pictures), NAMES, templates=("{}",))
    bag = telling(BagSettings())
    with pytest.raises(UserError, match="has no word that this model knows"):
        compare.class_scores(bag, bag.encode_images(pictures), ["cat", " "], templates=("{}",))
