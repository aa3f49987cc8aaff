"""Models with parts as graphs: their whole vectors, or nothing."""

from dataclasses import replace

import pytest
import torch

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, ZeroShotSettings
from unicl.objective.terms import BagSettings, CaptionSettings, ContrastSettings
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.text import TextSettings
from unicl.use.export.run import export
from unicl.use.export.runtime import load_export
from unicl.use.export.settings import ExportSettings
from unicl.use.export.wholes import check_wholes, has_parts, of_wholes

TEN = ScaleSettings(init=10.0, learned=False)
WHOLE = ContrastSettings(name="global", scale=TEN)
LOCAL = ContrastSettings(name="local", similarity="attended", scale=TEN)
SETTINGS = ModelSettings(
    image=ImageSettings(
        name="test_resnet", size=32, enlarged=48, head="affine", parts=ImageParts(stage=2, head="linear", unit=False)
    ),
    text=TextSettings(
        name="bert", layers=3, dim=16, heads=2, context=16, head="none", pool="mean", parts=TextParts(layers=2)
    ),
    width=16,
    terms=(WHOLE, LOCAL),
    zero_shot=ZeroShotSettings(ensemble="best"),
    recipe="gloria",
)


@pytest.fixture(scope="module")
def gloria():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red flower", "a temple by the water"], vocab_size=300, context=16)
    return TwoTowers(SETTINGS, tokenizer=tokenizer).eval()


@pytest.mark.parametrize("to", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_whole_vectors_of_a_model_with_parts_go_out_with_a_note(gloria, tmp_path, to):
    said = []
    report = export(gloria, tmp_path / "out", to=to, settings=ExportSettings(pictures=4), say=said.append)
    for told in (report.notes, said):
        assert any("parts of pictures and texts are left out" in line for line in told)
    again = load_export(tmp_path / "out")
    texts = ["a red flower", "a temple", "the water by the red temple"]
    assert torch.allclose(again.embed_text(texts), gloria.embed_text(texts), atol=1e-4)
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(again.embed_image(pictures), gloria.embed_image(pictures), atol=1e-4)
    assert again.settings.terms == (WHOLE,)
    assert not has_parts(again.settings)
    assert again.encode_texts(texts).parts is None
    assert again.scale("instances") == pytest.approx(10)


@pytest.mark.parametrize("side", ["image", "text"])
def test_means_of_parts_are_refused_before_any_work(side):
    tower = replace(getattr(SETTINGS, side), pool="parts")
    with pytest.raises(UserError, match=f"{side} tower are only means of their parts.*write --to safetensors"):
        check_wholes(replace(SETTINGS, **{side: tower}), joint=False)


def test_a_trained_model_of_parts_is_refused_and_nothing_is_written(parted, tmp_path):
    said = []
    with pytest.raises(UserError, match="image and text tower are only means"):
        export(parted, tmp_path / "out", settings=ExportSettings(pictures=4), say=said.append)
    assert not said
    assert not list(tmp_path.iterdir())


def test_scores_of_parts_are_no_joint_graph_and_terms_of_parts_alone_no_graph(gloria, tmp_path):
    with pytest.raises(UserError, match="export without --joint"):
        export(gloria, tmp_path / "out", settings=ExportSettings(pictures=4, joint=True))
    with pytest.raises(UserError, match="trained to compare parts alone"):
        check_wholes(replace(SETTINGS, terms=(LOCAL,)), joint=False)
    assert not list(tmp_path.iterdir())


def test_a_model_without_parts_is_left_as_it_is(model):
    check_wholes(model.settings, joint=True)
    assert of_wholes(model.settings) is model.settings
    assert not has_parts(model.settings)


def test_a_model_without_contrasts_has_whole_vectors(classifier):
    check_wholes(classifier.settings, joint=False)
    assert of_wholes(classifier.settings) is classifier.settings


def test_terms_that_predict_words_stay_behind(tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red flower", "a temple by the water"], vocab_size=300, context=16)
    image = ImageSettings(name="test_vit", size=32, head="none", parts=ImageParts(head="none", unit=False))
    settings = ModelSettings(
        image=image, text=None, width=64, terms=(CaptionSettings(width=32, heads=2), BagSettings())
    )
    model = TwoTowers(settings, tokenizer=tokenizer).eval()
    export(model, tmp_path / "out", to="torch", settings=ExportSettings(pictures=4), say=list)
    again = load_export(tmp_path / "out")
    assert again.settings.terms == ()
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(again.embed_image(pictures), model.embed_image(pictures), atol=1e-4)
