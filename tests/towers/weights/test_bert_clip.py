"""BertCLIP's old folders: read as transformers' nearest class reads the same weights, and written as that class."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_cases import wrong_by_one
from transformers_cases import bert_tokenizer, largest, loaded, ours, pictures, save_clip, save_dual, theirs
from unicl.published import model_of, publish
from unicl.towers.weights import bert_clip as layout
from unicl.towers.weights import transformers_clip, transformers_dual
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import wanted

PICTURES = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
"""As transformers 4.18 wrote it: sides as numbers, and no class that still exists."""


def old(folder, *, layers=2):
    """A dual model of transformers, and its weights as transformers 4.18 saved them under BertCLIP's class."""
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": layers}
    text = {"model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": layers}
    original = save_dual(folder, vision=vision, text=text, words=bert_tokenizer())
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content |= {"model_type": "clip", "architectures": ["BertCLIPModel"], "transformers_version": "4.18.0"}
    content["text_config"] |= {"model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    state = load_file(folder / "model.safetensors")
    state |= {
        "text_model.embeddings.position_ids": torch.arange(12)[None],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES), encoding="utf-8")
    return original


def test_features_are_equal_on_the_way_in_and_out(tmp_path):
    original = old(tmp_path / "a")
    processor = loaded_processor(tmp_path / "a")
    found = open_checkpoint(tmp_path / "a")
    assert layout.recognises(found)
    read = layout.read(found)
    assert read.text.head == "pooler"
    assert any("position_ids" in note for note in read.notes)
    model = model_of(read)
    expected = theirs(original, processor, pictures())
    assert max(largest(ours(model, pictures()), expected)) < 1e-5

    (tmp_path / "b").mkdir()
    assert transformers_dual.refusal(publish(model)) is None
    transformers_dual.write(publish(model), tmp_path / "b")
    assert max(largest(theirs(*loaded(tmp_path / "b"), pictures()), expected)) < 1e-5
    assert read.scale == pytest.approx(math.exp(float(original.logit_scale.detach())))


def loaded_processor(folder):
    """Its own configuration names a class that has another tokenizer, so AutoProcessor cannot read the folder."""
    from transformers import BertTokenizerFast, CLIPImageProcessor, VisionTextDualEncoderProcessor

    return VisionTextDualEncoderProcessor(
        CLIPImageProcessor.from_pretrained(folder), BertTokenizerFast.from_pretrained(folder)
    )


def test_every_entry_is_accounted_for(tmp_path):
    old(tmp_path, layers=1)
    spared = r".*position_ids|vision_model\.encoder.*"
    tried, wrong = wrong_by_one(open_checkpoint(tmp_path), layout.read, spared=spared)
    assert tried > 16
    assert wrong == []


def test_it_is_not_taken_for_its_neighbours(tmp_path):
    old(tmp_path / "old")
    assert not transformers_clip.recognises(open_checkpoint(tmp_path / "old"))
    assert not transformers_dual.recognises(open_checkpoint(tmp_path / "old"))
    save_clip(tmp_path / "clip")
    assert not layout.recognises(open_checkpoint(tmp_path / "clip"))
    save_dual(
        tmp_path / "dual",
        vision={"model_type": "clip_vision_model"},
        text={"model_type": "bert"},
        words=bert_tokenizer(),
    )
    assert not layout.recognises(open_checkpoint(tmp_path / "dual"))


def test_the_published_size_has_exactly_its_parameters():
    from transformers import BertConfig, CLIPVisionConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    vision, text = CLIPVisionConfig(patch_size=32), BertConfig(vocab_size=21_128)
    with torch.device("meta"):
        original = VisionTextDualEncoderModel(
            VisionTextDualEncoderConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=512)
        )
    config = {"model_type": "clip", "vision_config": vision.to_dict(), "text_config": text.to_dict()}
    found = layout.read(Checkpoint(place="nowhere", state=original.state_dict(), config=config))
    assert found.image.name == "vit_base_patch32_clip_quickgelu_224"
    assert found.text.tokenizer == "chinese"
    shapes = wanted(image=found.image, text=found.text, width=512, vocab_size=21_128)
    assert sum(value.numel() for value in shapes.values()) == 190_510_081
    assert sum(value.numel() for value in original.parameters()) == 190_510_081
