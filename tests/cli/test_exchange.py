"""inspect, export and merge as a user types them, and a model that starts from a published one."""

import json

import pytest
import timm
import torch
from transformers import CLIPConfig, CLIPModel

from cli_cases import SMALL, code
from unicl.data.text import load_tokenizer
from unicl.published import load
from unicl.towers.weights.transformers_files import write_tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of transformers with a small CLIP."""
    folder = tmp_path_factory.mktemp("hf") / "clip"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = {**sizes, "vocab_size": 49_408, "max_position_embeddings": 20, "eos_token_id": 49_407}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer=load_tokenizer("clip", context=20), kind="clip")
    return folder


@pytest.fixture(scope="module")
def adapted(data, published, tmp_path_factory):
    """A nested run that started from it, with adapters on the image tower."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    sources = ("--data", data[0], "--data", f"{data[1]}?text=title")
    flags = ("--init", published, "--image-lora", 2, "--batch", 12, "--steps", 3, "--lr", 0.01)
    assert code("train", "--recipe", "itl", *sources, *flags, "--out", out) == 0
    return out


@pytest.mark.slow
def test_a_published_model_is_trained_further_and_goes_back(published, adapted, tmp_path):
    assert "init: " in (adapted / "config.yaml").read_text()
    assert code("export", adapted, "--to", "transformers", "--out", tmp_path / "hf") == 0
    assert code("export", adapted, "--to", "transformers", "--view", "both", "--out", tmp_path / "both") == 0
    model, back, narrow = load(adapted), load(tmp_path / "hf"), load(tmp_path / "both" / "classes")
    assert model.settings.views == {"instances": None, "classes": 16}
    texts = ["a red square", "two green ones " * 20]
    assert torch.allclose(model.embed_text(texts), back.embed_text(texts), atol=1e-5)
    assert torch.allclose(model.embed_text(texts, view="classes"), narrow.embed_text(texts), atol=1e-5)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(model.embed_image(images), back.embed_image(images), atol=1e-5)
    assert not torch.allclose(load(published).embed_image(images), back.embed_image(images), atol=1e-3)
    assert "photos" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def test_an_image_tower_alone_starts_a_run_at_another_size(data, tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    flags = ("--init", tmp_path / "vit.pth", "--image-size", 64, *SMALL[4:], "--out", tmp_path / "run")
    assert code("train", "--recipe", "itl", "--data", data[0], *flags) == 0
    model = load(tmp_path / "run")
    assert (model.settings.image.size, model.settings.width) == (64, 32)
    assert model.image.backbone.pos_embed.shape[1] == 17


@pytest.mark.slow
def test_an_export_is_compared_and_searched_like_a_model(data, adapted, tmp_path, capsys):
    assert code("export", adapted, "--int8", "--out", tmp_path / "exported", "--pictures", 6) == 0
    assert "cosine at least" in capsys.readouterr().err
    assert {"image.onnx", "text.onnx", "parity.md"} <= {path.name for path in (tmp_path / "exported").iterdir()}
    assert code("search", tmp_path / "exported", data[0], "a red square", "--top", 2) == 0
    assert code("classify", tmp_path / "exported", data[0], "--names", "red,green") == 0
    assert code("inspect", tmp_path / "exported") == 0
    tasks = ("--task", "zeroshot", "--task", "knn", "--out", tmp_path / "report")
    assert code("evaluate", tmp_path / "exported", "--data", data[0], *tasks) == 0
    for verb in (("export",), ("merge", adapted)):
        assert code(*verb, tmp_path / "exported", "--out", tmp_path / "again") == 2
        assert "is an export already" in capsys.readouterr().err
    assert code("train", "--init", tmp_path / "exported", "--data", data[0], "--out", tmp_path / "run") == 2
    assert "whose weights stand in graphs" in capsys.readouterr().err


def test_what_a_model_is_is_said_for_people_and_for_programs(published, adapted, capsys):
    assert code("inspect", published) == 0
    assert "vit_base" in capsys.readouterr().out
    assert code("inspect", adapted, "--json") == 0
    assert json.loads(capsys.readouterr().out)["width"] == 32


def test_the_model_between_a_published_one_and_what_was_trained_from_it(published, adapted, tmp_path):
    assert code("merge", published, adapted, "--alpha", 0.5, "--out", tmp_path / "between") == 0
    middle, end = load(tmp_path / "between"), load(adapted)
    assert middle.settings.views == end.settings.views
    first, second, half = (m.image.head.weight for m in (load(published), end, middle))
    assert torch.allclose(half, (first + second) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "nowhere.pt"], "no model at 'nowhere.pt'"),
        (["inspect", "{photos}"], "holds no weights"),
        (["inspect", "{captions}"], "cannot be read as weights"),
        (["export", "{run}", "--to", "onx", "--out", "{out}"], "onx"),
        (["export", "{run}", "--to", "openai", "--out", "{out}"], "cannot be written as openai"),
        (["export", "{run}", "--to", "transformers", "--int8", "--out", "{out}"], "of graphs, not of transformers"),
        (["export", "{run}", "--int8", "--fp16", "--out", "{out}"], "exclude each other"),
        (["export", "{run}", "--out", "{photos}"], "not an empty folder"),
        (["export", "{run}", "--opset", "5", "--out", "{out}"], "too old"),
        (["export", "{run}", "--data", "nowhere/", "--out", "{out}"], "nowhere"),
        (["merge", "{run}", "{published}", "--out", "{out}"], "differ in"),
        (["merge", "{run}", "{run}", "--alpha", "2", "--out", "{out}"], "alpha"),
        (["merge", "{run}", "{run}", "--out", "{photos}"], "not an empty folder"),
        (["train", "--init", "{published}", "--image", "resnet50", "--data", "{photos}", "--out", "{out}"], "--image"),
        (["train", "--init", "{published}", "--width", "20", "--data", "{photos}", "--out", "{out}"], "32 dimensions"),
        (["train", "--init", "{captions}", "--data", "{photos}", "--out", "{out}"], "cannot be read as weights"),
        (["train", "--image-lora", "-1", "--data", "{photos}", "--out", "{out}"], "lora"),
    ],
)
def test_a_mistake_is_one_plain_message_and_nothing_is_written(arguments, said, data, run, published, tmp_path, capsys):
    names = {"photos": data[0], "captions": data[1], "out": tmp_path / "out", "run": run, "published": published}
    assert code(*(a.format(**names) for a in arguments)) == 2
    shown = capsys.readouterr().err
    assert said in shown.splitlines()[-1] or said in shown.rsplit("unicl: ", 1)[1]
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("*.safetensors"))


def test_a_hub_name_without_a_network_is_one_plain_message(capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert code("inspect", "nobody/such-a-clip") == 2
    assert "cannot be reached for 'nobody/such-a-clip'" in capsys.readouterr().err
