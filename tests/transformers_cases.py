"""Small random models of transformers' own classes with tokenizers and processors, and their features."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    AutoProcessor,
    BertTokenizerFast,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from original_towers import shake
from unicl.model import TwoTowers

SIDE = 32
CONTEXT = 12
TEXTS = ("a cat", "the cat on a mat, the dog", "cat dog " * 40, "")
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
WORDS = VISION | {"hidden_size": 24, "max_position_embeddings": CONTEXT}
BERT_ENTRIES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cat", "dog", "mat", "on", ",")


def pictures(*, sizes=((SIDE, SIDE),) * 3):
    """PIL pictures of noise in large blocks."""
    rng = np.random.default_rng(0)
    blocks = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in sizes]
    return [block.resize(size, Image.Resampling.BICUBIC) for block, size in zip(blocks, sizes, strict=True)]


def clip_tokenizer():
    """transformers' own class with few merges; the end mark is the last entry."""
    letters = [chr(code) for code in range(33, 127)]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>")]
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {entry: id for id, entry in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def bert_tokenizer():
    return BertTokenizerFast(vocab={word: id for id, word in enumerate(BERT_ENTRIES)}, model_max_length=CONTEXT)


def saved(model, folder: Path, processor) -> torch.nn.Module:
    """Shake a model and save it with its processor, as transformers does; returns it."""
    shake(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def save_clip(folder: Path, *, vision=None, text=None, width=16):
    from transformers import CLIPConfig

    words = clip_tokenizer()
    ids = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    config = CLIPConfig(
        vision_config=VISION | (vision or {}), text_config=WORDS | ids | (text or {}), projection_dim=width
    )
    return saved(CLIPModel(config), folder, CLIPProcessor(_clip_pictures(), words))


def save_siglip(folder: Path, *, vision=None, vocab=None):
    from transformers import SiglipConfig

    words = _with_end(bert_tokenizer())
    ids = {
        "vocab_size": vocab or len(words),
        "pad_token_id": words.pad_token_id,
        "hidden_size": 32,
        "projection_size": 32,
    }
    config = SiglipConfig(vision_config=VISION | (vision or {}), text_config=WORDS | ids)
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    return saved(SiglipModel(config), folder, SiglipProcessor(images, words))


def save_dual(folder: Path, *, vision, text, words, width=16):
    from transformers import VisionTextDualEncoderConfig

    config = VisionTextDualEncoderConfig(
        vision_config=VISION | vision,
        text_config=WORDS | {"vocab_size": len(words)} | text,
        projection_dim=width,
    )
    processor = VisionTextDualEncoderProcessor(_clip_pictures(), words)
    return saved(VisionTextDualEncoderModel(config), folder, processor)


def loaded(folder: Path):
    """What AutoModel and AutoProcessor make of a folder."""
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def theirs(model, processor, images, texts=TEXTS, *, padding="longest"):
    """Unit vectors of pictures and texts by transformers' own code."""
    inputs = processor(images=images, text=list(texts), padding=padding, truncation=True, return_tensors="pt")
    pixels = inputs.pop("pixel_values")
    seen, read = model.get_image_features(pixels), model.get_text_features(**inputs)
    return normalize(_pooled(seen), dim=-1), normalize(_pooled(read), dim=-1)


def ours(model: TwoTowers, images, texts=TEXTS):
    """Unit vectors of pictures and texts by ours."""
    return model.embed_image(images), model.embed_text(list(texts))


def largest(first, second):
    """The largest difference of images and of texts."""
    return tuple(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def _pooled(output):
    return getattr(output, "pooler_output", output)


def _clip_pictures():
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _with_end(words):
    return PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        pad_token="[PAD]",
        eos_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=CONTEXT,
        model_input_names=["input_ids"],  # as in SigLIP's files: it never masks padding
    )
