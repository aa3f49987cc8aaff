"""Small random models of Chinese-CLIP's own classes and of transformers' ALIGN, and their features."""

from pathlib import Path

import numpy as np
import torch
from cn_clip.clip import image_transform, tokenize
from cn_clip.clip.model import CLIP
from PIL import Image
from torch.nn.functional import normalize
from transformers import AlignConfig, AlignModel

from original_towers import shake
from unicl.data.text import load_tokenizer
from unicl.towers.weights.transformers_files import write_tokenizer

TEXTS = ("皮卡丘", "一只 dog 在草地上", "杰尼龟和妙蛙种子" * 20, "")
"""Short ones, which are padded, one that is cut, and an empty one."""

VIT = {"embed_dim": 32, "image_resolution": 64, "vision_layers": 2, "vision_width": 128, "vision_patch_size": 16}
RESNET = VIT | {"vision_layers": (3, 4, 6, 3), "vision_width": 64, "vision_patch_size": None}
WORDS = {
    "vocab_size": 21_128,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 128,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 192,
    "text_max_position_embeddings": 512,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 2,
    "text_type_vocab_size": 2,
}


def official(sizes=VIT, **changed):
    """cn_clip's own model with random numbers everywhere, in float32."""
    return shake(CLIP(**(WORDS | sizes | changed)))


def official_file(model, path: Path, *, prefix="module."):
    """A training checkpoint as cn_clip writes it."""
    state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "step": 7, "name": "run", "state_dict": state, "optimizer": {}}, path)
    return path


def pictures(*, side=64, number=3):
    """PIL pictures of large blocks of noise."""
    rng = np.random.default_rng(0)
    blocks = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(number)]
    return [block.resize((side, side), Image.Resampling.BICUBIC) for block in blocks]


@torch.no_grad()
def official_features(model, images, texts=TEXTS):
    """Unit vectors of pictures and texts by cn_clip's own preprocessing, tokenizer and classes."""
    transform = image_transform(model.visual.input_resolution)
    pixels = torch.stack([transform(image) for image in images])
    return normalize(model.encode_image(pixels), dim=-1), normalize(model.encode_text(tokenize(list(texts))), dim=-1)


def save_align(folder: Path, *, vision=None, text=None, temperature=1 / 64):
    """transformers' AlignModel with an EfficientNet-B0 and a small BERT, saved with the Chinese vocabulary."""
    config = AlignConfig(
        projection_dim=320,
        vision_config={"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 320} | (vision or {}),
        text_config={
            "vocab_size": 21_128,
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "intermediate_size": 96,
        }
        | (text or {}),
    )
    model = shake(AlignModel(config))
    with torch.no_grad():
        # Swish and the gates shrink states; without this, two pictures would be the same at the end.
        for value in model.vision_model.parameters():
            value.mul_(3 if value.ndim == 4 else 1)
        model.temperature.fill_(temperature)
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer=load_tokenizer("chinese", context=64), kind="bert")
    return model
