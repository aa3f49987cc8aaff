"""The files beside the weights of a transformers folder: preprocessing, tokenizer, configuration."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import tokenizers
from safetensors.torch import save_file
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor

from unicl.data.image import Frame
from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, Published

Kind = Literal["clip", "bert", "plain"]
"""transformers' CLIPTokenizer, its BertTokenizer, and its PreTrainedTokenizerFast, which reads any tokenizer.json."""

Triple = tuple[float, float, float]

FRAME_FILES: Final = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
VOCABULARIES: Final = ((49_408, "clip"), (21_128, "chinese"))
_FILTERS: Final[tuple[tuple[int, Literal["bilinear", "bicubic"]], ...]] = ((2, "bilinear"), (3, "bicubic"))
_CLIP_MARKS: Final = ("<|startoftext|>", "<|endoftext|>")
_CLIP_WORDS: Final = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How a published model wants its pictures: fitted by ``frame`` into a square of ``size`` pixels, then normalised.

    ``mean`` and ``std`` are of pixels from 0 to 1; ``notes`` say what was assumed or could not be kept.
    """

    frame: Frame = Frame()
    size: int
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    notes: tuple[str, ...] = ()


def read_frame(folder: Path | None, *, size: int, otherwise: Framing | None = None) -> Framing:
    """The preprocessing that a transformers folder asks for, by its preprocessor_config.json or processor_config.json.

    Without such a file it is ``otherwise``, or CLIP's for squares of ``size``, and a note says so. The side in the
    file is returned as it stands; it may differ from ``size`` (ALIGN's configuration says 600, its pictures are 289).
    Raises `UserError` for preprocessing that makes no square or that is not ours.
    """
    if folder is None or not any((folder / name).is_file() for name in FRAME_FILES):
        found = otherwise or Framing(size=size)
        told = f"{found.frame.mode} to {found.size} px, mean {found.mean}, deviation {found.std}"
        return replace(found, notes=(*found.notes, f"no preprocessor_config.json: pictures are read as {told}"))
    settings = _image_processor(folder)
    mode, scale, side = _sides(settings, folder)
    ways = dict(_FILTERS).get(int(settings.get("resample") or 2))
    notes = () if ways else (f"pictures are scaled bicubic, not by Pillow's filter {settings['resample']}",)
    mean, std = _normalisation(settings)
    frame = Frame(mode=mode, scale=scale if scale > side else None, interpolation=ways or "bicubic")
    return Framing(frame=frame, size=side, mean=mean, std=std, notes=notes)


def frame_refusal(frame: Frame) -> str | None:
    """What of a frame transformers' image processors cannot express, or None."""
    if frame.mode == "pad":
        return "pictures are padded to a square, which no image processor of these models in transformers does"
    return None


def write_processor(
    folder: Path, *, model: Published, processor_class: str, image_processor_class: str
) -> tuple[Path, ...]:
    """Write preprocessor_config.json, by which AutoImageProcessor and AutoProcessor load; ask `frame_refusal` first.

    Raises `UserError` if there is no image tower or the frame is refused.
    """
    if model.image is None or (refusal := frame_refusal(model.image.frame)):
        raise UserError(f"no preprocessing can be written: {'no image tower' if model.image is None else refusal}")
    frame, size = model.image.frame, model.image.size
    side = frame.side(size)
    square = {"height": side, "width": side}
    content = {
        "image_processor_type": image_processor_class,
        "processor_class": processor_class,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if frame.mode == "crop" else square,
        "resample": {name: number for number, name in _FILTERS}[frame.interpolation],
        "do_center_crop": frame.mode == "crop" or side > size,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.mean),
        "image_std": list(model.std),
    }
    if image_processor_class == "EfficientNetImageProcessor":
        # Its own defaults would divide by the deviation twice.
        content |= {"rescale_offset": False, "include_top": False}
    return (_write(folder / "preprocessor_config.json", content),)


def kind_of(tokenizer: Tokenizer) -> Kind:
    """The class of transformers that can hold a tokenizer: by what it is, not by its name."""
    model = _content(tokenizer)["model"]
    if len(tokenizer.inner.encode("").ids) != 2:
        return "plain"  # the other two put a mark before and one behind every text, whatever their files say
    if model["type"] == "BPE" and model.get("end_of_word_suffix") == "</w>":
        return "clip"
    return "bert" if model["type"] == "WordPiece" and "[CLS]" in model["vocab"] else "plain"


def write_tokenizer(folder: Path, *, tokenizer: Tokenizer, kind: Kind) -> tuple[Path, ...]:
    """Write the files that AutoTokenizer and AutoProcessor load and that give the same ids.

    What differs all the same is said by `tokenizer_notes`. Raises `UserError` if the tokenizer is not of this kind.
    """
    if kind not in ("plain", kind_of(tokenizer)):
        raise UserError(
            f"the tokenizer {tokenizer.name!r} is no {kind!r} tokenizer in transformers; write it as 'plain'"
        )
    match kind:
        case "clip":
            return _write_clip(folder, tokenizer)
        case "bert":
            return _write_bert(folder, tokenizer)
        case "plain":
            return _write_plain(folder, tokenizer)


def tokenizer_notes(tokenizer: Tokenizer, *, kind: Kind) -> tuple[str, ...]:
    """What of a tokenizer the written files cannot express, for the card and for people."""
    mends = tokenizer.cleaning in ("mend", "lower", "fold", "canonical")
    notes = []
    if mends:
        notes.append(
            "texts with broken encodings, HTML entities or typographic quotes should go through ftfy and html.unescape "
            "first, as in OpenAI's code: transformers' tokenizer does not do it"
        )
    if kind == "clip":
        notes.append("padding is the end mark in transformers and 0 in OpenAI's code; the model does not see it")
    if kind == "bert" and tokenizer.cleaning == "bert":
        notes.append(
            "words of 101 to 200 characters are one unknown word in transformers, Chinese-CLIP cuts them; the two also "
            "differ in signs that are younger than transformers' tables of Unicode, and in the Greek final sigma"
        )
    return tuple(notes)


def find_tokenizer(folder: Path | None, *, vocab_size: int) -> str:
    """``TextSettings.tokenizer`` for a checkpoint: the folder if it has tokenizer files, else by the vocabulary's size.

    49,408 entries are CLIP's, 21,128 the Chinese BERT's. Raises `UserError` for any other number without files.
    """
    if folder is not None and any((folder / name).is_file() for name in TOKENIZER_FILES):
        return str(folder)
    for size, name in VOCABULARIES:
        if size == vocab_size:
            return name
    known = ", ".join(f"{size:,} ({name})" for size, name in VOCABULARIES)
    raise UserError(
        f"the text tower knows {vocab_size:,} tokens, and there is no tokenizer beside it; put one of "
        f"{', '.join(TOKENIZER_FILES)} into the folder of the weights (known without a file: {known})"
    )


def write_weights(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write model.safetensors, marked as transformers wants it, and config.json."""
    weights = folder / "model.safetensors"
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, weights, {"format": "pt"}
    )
    return weights, _write(folder / "config.json", config)


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _image_processor(folder: Path) -> dict[str, Any]:
    """What transformers makes of the file, its defaults and old spellings included."""
    from transformers import AutoImageProcessor

    try:
        found: dict[str, Any] = AutoImageProcessor.from_pretrained(folder, local_files_only=True).to_dict()
    except Exception as error:  # missing classes, broken JSON and wrong types alike
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} holds no preprocessing that transformers can read: {reason}") from error
    return found


def _sides(settings: Mapping[str, Any], folder: Path) -> tuple[Literal["crop", "squash"], int, int]:
    """How a picture is scaled, to which side, and the side of the square that is left."""
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    cropped = bool(settings.get("do_center_crop")) and crop
    short, height, width = size.get("shortest_edge"), size.get("height"), size.get("width")
    square = (crop.get("height"), crop.get("width")) if cropped else (height, width)
    scaled = short or (height if height == width else None)
    if not settings.get("do_resize", True) or scaled is None or square[0] is None or square[0] != square[1]:
        raise UserError(
            f"{folder} asks for pictures that are no squares (size {size}, crop {crop if cropped else None})"
        )
    return ("crop" if short else "squash"), int(scaled), int(square[0])


def _normalisation(settings: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """Mean and deviation of pixels from 0 to 1 that do what rescaling, its offset and normalisation do together."""
    step = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    start = -1.0 if settings.get("rescale_offset") else 0.0
    means, stds = [], []
    for mean, std in zip(settings["image_mean"], settings["image_std"], strict=True):
        slope, shift = (step / std, (start - mean) / std) if settings.get("do_normalize", True) else (step, start)
        if settings.get("include_top"):
            slope, shift = slope / std, shift / std
        stds.append(round(1 / (255 * slope), 10))
        means.append(round(-shift / (255 * slope), 10) + 0.0)
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tokenizer.inner.to_str())
    return found


def _write_clip(folder: Path, tokenizer: Tokenizer) -> tuple[Path, ...]:
    content = _content(tokenizer)
    marks = dict(zip((tokenizer.inner.encode("").tokens), _CLIP_MARKS, strict=True))
    vocabulary = {marks.get(token, token): id for token, id in content["model"]["vocab"].items()}
    content["model"] |= {"vocab": vocabulary, "unk_token": _CLIP_MARKS[1], "continuing_subword_prefix": ""}
    content["added_tokens"] = [_added(mark, vocabulary[mark]) for mark in _CLIP_MARKS]
    start, end = _CLIP_MARKS
    content["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": [end, vocabulary[end]],
        "cls": [start, vocabulary[start]],
        "trim_offsets": False,
        "add_prefix_space": False,
    }
    inner = tokenizers.Tokenizer.from_str(json.dumps(content))
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.save(str(folder / "tokenizer.json"))
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    settings = _settings(tokenizer, "CLIPTokenizer", {"bos": start, "eos": end, "unk": end, "pad": end})
    return (
        folder / "tokenizer.json",
        folder / "merges.txt",
        folder / "vocab.json",
        _write(folder / "tokenizer_config.json", settings),
    )


def _write_bert(folder: Path, tokenizer: Tokenizer) -> tuple[Path, ...]:
    names = {id: token for token, id in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    lines = (names.get(id, f"[unused-{id}]") for id in range(tokenizer.vocab_size))
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    content = _content(tokenizer)
    # BertTokenizer takes no other number, whatever this file says; readers of the file shall agree with it.
    content["model"]["max_input_chars_per_word"] = 100
    tokenizers.Tokenizer.from_str(json.dumps(content)).save(str(folder / "tokenizer.json"))
    normalizer = content["normalizer"] or {}
    marks = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
    settings = _settings(tokenizer, "BertTokenizer", marks) | {
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "split_special_tokens": True,
    }
    return folder / "vocab.txt", folder / "tokenizer.json", _write(folder / "tokenizer_config.json", settings)


def _write_plain(folder: Path, tokenizer: Tokenizer) -> tuple[Path, ...]:
    inner = tokenizers.Tokenizer.from_str(tokenizer.inner.to_str())
    steps = _steps(tokenizer)
    if steps:
        inner.normalizer = normalizers.Sequence([*steps, *([inner.normalizer] if inner.normalizer else [])])
    inner.save(str(folder / "tokenizer.json"))
    # CLIP's code pads with 0, which is a word; transformers would take it out of texts.
    word = kind_of(tokenizer) == "clip" and not tokenizer.fixed
    ids = {"pad": tokenizer.eos_id if word else tokenizer.pad_id, "eos": tokenizer.eos_id}
    marks = {name: mark for name, id in ids.items() if id >= 0 and (mark := inner.id_to_token(id)) is not None}
    settings = _settings(tokenizer, "PreTrainedTokenizerFast", marks)
    # A caption that says "<eos>" must not end there.
    settings["split_special_tokens"] = True
    return folder / "tokenizer.json", _write(folder / "tokenizer_config.json", settings)


def _steps(tokenizer: Tokenizer) -> list[Any]:
    """What of a tokenizer's cleaning the `tokenizers` library can do."""
    if tokenizer.cleaning in ("none", "bert"):
        return []
    quotes = (("[\u2018-\u201b\u02bc]", "'"), ("[\u201c-\u201f]", '"'))
    steps: list[Any] = [normalizers.NFC(), *(normalizers.Replace(tokenizers.Regex(a), b) for a, b in quotes)]
    if tokenizer.cleaning == "fold":
        steps.append(normalizers.NFKC())
    if tokenizer.cleaning != "mend":
        steps.append(normalizers.Lowercase())
    if tokenizer.cleaning == "canonical":
        steps.append(normalizers.Replace(tokenizers.Regex(r"[!-/:-@\[-`{-~]"), ""))
    return [*steps, normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]


def _settings(tokenizer: Tokenizer, kind: str, marks: Mapping[str, str]) -> dict[str, Any]:
    return {
        "tokenizer_class": kind,
        "model_max_length": tokenizer.context,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        # Where padding is read like words, a mask must not hide it (SigLIP).
        "model_input_names": ["input_ids"] if tokenizer.fixed else ["input_ids", "attention_mask"],
        **{f"{name}_token": mark for name, mark in marks.items()},
    }


def _added(mark: str, id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": mark, **flags}
