"""Models of ours as the folders of other projects: read by their code, whole or not at all, with a card."""

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from transformers import AutoModel, AutoProcessor

import unicl
from unicl.data.image import Frame
from unicl.data.text import Tokenizer, load_tokenizer, train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ContrastSettings
from unicl.published import model_of, publish
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.use.export.formats import refusal, write

SENTENCES = ["a red flower", "a temple by the water", "a photo of a dog's tail " * 9]
VIT = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
NESTED = (ContrastSettings(texts="captions"), ContrastSettings(name="classes", texts="classes", dims=8))


def clip(*, terms=(ContrastSettings(),), frame=Frame(), heads=1, tokenizer=None):
    """A nested model in the shape of OpenAI's."""
    torch.manual_seed(0)
    image = ImageSettings(
        name="vit_base_patch32_clip_quickgelu_224", size=32, options=VIT, pool="token", head="linear", frame=frame
    )
    text = TextSettings(tokenizer="clip", layers=2, dim=64, heads=heads, context=16)
    settings = ModelSettings(image=image, text=text, width=16, terms=terms, recipe="itl")
    return TwoTowers(settings, tokenizer=tokenizer or load_tokenizer("clip", context=16)).eval()


@pytest.fixture(scope="module")
def nested():
    return clip(terms=NESTED)


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def both(model):
    return {view: publish(model, view=view) for view in ("instances", "classes")}


def test_a_transformers_folder_gives_the_same_vectors_through_auto_classes(nested, pixels, tmp_path):
    files = write({"instances": publish(nested)}, tmp_path / "hf", to="transformers", rebuild=model_of)
    assert {"config.json", "model.safetensors", "README.md", "preprocessor_config.json"} <= {p.name for p in files}
    theirs, processor = AutoModel.from_pretrained(tmp_path / "hf"), AutoProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(
        text=SENTENCES, images=list(pixels), return_tensors="pt", padding=True, truncation=True, max_length=16
    )
    with torch.no_grad():
        outputs = theirs(**inputs)
    assert torch.allclose(outputs.text_embeds, nested.embed_text(SENTENCES), atol=1e-5)
    assert torch.allclose(outputs.image_embeds, nested.embed_image(pixels), atol=1e-5)


def test_both_views_are_two_folders_and_the_class_view_is_narrower(nested, tmp_path):
    write(both(nested), tmp_path / "out", to="open_clip", rebuild=model_of)
    for view, width in (("instances", 16), ("classes", 8)):
        theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out' / view}")
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out' / view}")(SENTENCES)
        with torch.no_grad():
            found = theirs.eval().encode_text(tokens, normalize=True)
        assert found.shape == (3, width)
        assert torch.allclose(found, nested.embed_text(SENTENCES, view=view), atol=1e-5)
        assert f"of {width} dimensions" in (tmp_path / "out" / view / "README.md").read_text()


@pytest.mark.parametrize("view", ["instances", "classes"])
def test_a_folder_of_ours_is_read_back(view, nested, pixels, tmp_path):
    write({view: publish(nested, view=view)}, tmp_path / "plain", to="safetensors", rebuild=model_of)
    back = unicl.load(tmp_path / "plain")
    assert torch.allclose(back.embed_text(SENTENCES), nested.embed_text(SENTENCES, view=view), atol=1e-6)
    assert torch.allclose(back.embed_image(pixels), nested.embed_image(pixels, view=view), atol=1e-6)
    assert back.scale("instances") == pytest.approx(nested.scale(view))


def test_what_cannot_be_expressed_is_said_before_anything_is_written(nested, tmp_path):
    model = clip(terms=NESTED, frame=Frame(mode="pad"))
    with pytest.raises(UserError, match="cannot be written as transformers, and nothing is: .*CLIPModel.*padded"):
        write({"instances": publish(model)}, tmp_path / "hf", to="transformers", rebuild=model_of)
    with pytest.raises(UserError, match="cannot be written as cn_clip"):
        write({"instances": publish(nested)}, tmp_path / "hf", to="cn_clip", rebuild=model_of)
    assert not list(tmp_path.iterdir())


def test_all_reasons_of_a_format_with_several_layouts_are_given():
    told = refusal(publish(clip(frame=Frame(mode="pad"))), to="transformers")
    assert all(f"transformers {kind}Model: " in told for kind in ("CLIP", "Siglip", "ChineseCLIP", "Align"))
    assert refusal(publish(clip()), to="openai") is None


def test_a_folder_that_holds_something_is_refused_and_stays(nested, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        write({"instances": publish(nested)}, tmp_path / "out", to="openai", rebuild=model_of)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_an_empty_folder_and_what_a_broken_run_left_are_taken(nested, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "old.pt").write_text("half")
    files = write({"instances": publish(nested)}, tmp_path / "out", to="openai", rebuild=model_of)
    assert [path.suffix for path in files] == [".md", ".pt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_behind(nested, tmp_path):
    def broken(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write({"instances": publish(nested)}, tmp_path / "out", to="safetensors", rebuild=broken)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_named(nested, tmp_path):
    with pytest.raises(UserError, match="no format 'keras'"):
        write({"instances": publish(nested)}, tmp_path / "out", to="keras", rebuild=model_of)


def test_a_trained_tokenizer_travels_to_transformers(tmp_path):
    model = clip(tokenizer=train_tokenizer(SENTENCES, vocab_size=400, context=16))
    write({"instances": publish(model)}, tmp_path / "hf", to="transformers", rebuild=model_of)
    theirs, processor = AutoModel.from_pretrained(tmp_path / "hf"), AutoProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(text=SENTENCES, return_tensors="pt", padding=True, truncation=True, max_length=16)
    with torch.no_grad():
        found = theirs.get_text_features(**inputs)
    found = getattr(found, "pooler_output", found)
    assert torch.allclose(torch.nn.functional.normalize(found, dim=-1), model.embed_text(SENTENCES), atol=1e-5)


def test_a_card_says_where_texts_are_mended_that_are_not_here(nested, tmp_path):
    clip_tokenizer = load_tokenizer("clip", context=16)
    plain = Tokenizer(clip_tokenizer.inner, name="clip", context=16, eos_id=clip_tokenizer.eos_id, pad_id=0)
    for name, tokenizer, said in (("mended", clip_tokenizer, False), ("plain", plain, True)):
        published = replace(publish(nested), tokenizer=tokenizer)
        write({"instances": published}, tmp_path / name, to="openai", rebuild=model_of)
        assert ("are mended there first" in (tmp_path / name / "README.md").read_text()) == said


def test_the_card_stands_beside_the_weights_and_tells_how_to_read_them(nested, tmp_path):
    write({"instances": publish(nested)}, tmp_path / "openai", to="openai", rebuild=model_of)
    card = (tmp_path / "openai" / "README.md").read_text()
    weights = next(Path(tmp_path / "openai").glob("*.pt")).name
    assert f'clip.load("FOLDER/{weights}")' in card


@pytest.mark.parametrize("to", ["transformers", "open_clip", "openai", "cn_clip"])
def test_a_model_of_parts_is_refused_by_formats_that_have_no_place_for_them(parted, tmp_path, to):
    with pytest.raises(UserError, match="no place for parts of pictures and texts.* write safetensors"):
        write({"instances": publish(parted)}, tmp_path / "out", to=to, rebuild=model_of)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [{"states": (1, -1)}, {"pool": "padded"}])
def test_a_model_of_other_states_is_refused_by_formats_that_would_read_the_last_one(nested, text):
    model = publish(nested)
    other = replace(model, text=replace(model.text, **text))
    for to in ("transformers", "open_clip", "openai", "cn_clip"):
        assert "read from several layers or over their padding" in refusal(other, to=to)
    assert refusal(other, to="safetensors") is None


def test_a_model_of_parts_goes_out_whole_as_a_folder_of_ours(parted, tmp_path):
    write({"instances": publish(parted)}, tmp_path / "out", to="safetensors", rebuild=model_of)
    again = unicl.load(tmp_path / "out")
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = ["a red square", "a blue square number 2"]
    for encode, what in (("encode_images", pictures), ("encode_texts", texts)):
        ours, theirs = (getattr(model, encode)(what) for model in (parted, again))
        assert torch.equal(theirs.parts.values, ours.parts.values)
        assert torch.equal(theirs.whole, ours.whole)
    assert [t.similarity for t in again.settings.terms] == ["tokenwise"]
    assert again.settings.zero_shot == parted.settings.zero_shot
    assert again.scale("instances") == pytest.approx(parted.scale("instances"), rel=1e-6)
