"""LiT and SigLIP as .npz files of big_vision and vision_transformer: ``img/...``, ``txt/...``, ``t`` and perhaps ``b``.

The text tower is a transformer that reads its padding (pool: the last place) or a BERT ([CLS] and word pieces, no
[SEP]). ``t`` is the logarithm of the multiplier. Sources: google-research/vision_transformer, vit_jax/models_lit.py;
google-research/big_vision, models/proj/image_text/two_towers.py and models/proj/flaxformer/bert.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

from torch import Tensor

from unicl.data.text import Tokenizer, load_tokenizer, padded_with_end, without_end
from unicl.errors import UserError
from unicl.towers.heads import HeadKind
from unicl.towers.text import TextSettings
from unicl.towers.weights import flax_vit
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import ROW, Rule, Rules
from unicl.towers.weights.published import HALF, Published, assembled

NAME: Final = "lit"
CONTEXT: Final = 16
"""Tokens that a BERT of LiT reads (LiT, section 4.3); its table of positions is longer."""

BERT_HEAD: Final = 64
_ROOTS: Final = ("", "params/")
_TWICE: Final = ("Encoder_0/pos_embedding", "Encoder_0/posembed_input/pos_embedding")
_NOTE: Final = "pictures are scaled with a filter that averages; TensorFlow's bilinear resize picked single pixels"


def recognises(found: Checkpoint) -> bool:
    """Whether there are flax's names of an image and a text tower."""
    return any(found.any(f"{root}img/") and found.any(f"{root}txt/") for root in _ROOTS)


def read(found: Checkpoint) -> Published:
    """Both towers with the heads that they have; raises `UserError` naming what does not fit.

    The tokenizer is no part of the file: it has to lie beside it, as it does where these files are published.
    """
    root = next(root for root in _ROOTS if found.any(f"{root}img/"))
    state, notes = _single_positions(flax_vit.unrolled(found.state), root=f"{root}txt/")
    found = replace(found, state=state)
    image = flax_vit.image_settings(found, root=f"{root}img/", head=_head(found, f"{root}img/"))
    text, rules = _text(found, root=f"{root}txt/")
    width = found.shape(f"{root}txt/head/bias")[0] if text.head == "affine" else text.dim
    tokenizer = _tokenizer(found, text, root=root)
    model = Published(
        origin="LiT (flax .npz)",
        source=str(found.place),
        image=image,
        text=text,
        width=width,
        state={},
        mean=HALF,
        std=HALF,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=found.shape(_words(found, root))[0],
        tokenizer=tokenizer,
        notes=(*notes, _NOTE),
    )
    scalars = (Rule("log_scale", f"{root}t", ROW), Rule("bias", f"{root}b", ROW))
    rules = (*flax_vit.image_rules(found, root=f"{root}img/"), *rules, *scalars)
    return assembled(found.state, model, rules=rules, bias=f"{root}b" in found.state)


def _head(found: Checkpoint, root: str) -> HeadKind:
    return "affine" if found.any(f"{root}head/") else "none"


def _single_positions(state: dict[str, Tensor], *, root: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Old checkpoints hold the positions of the text twice, and the model added both."""
    place = f"{root}pos_embedding"
    twice = next((root + name for name in _TWICE if root + name in state), None)
    if twice is None or place not in state or state[twice].shape != state[place].shape:
        return state, ()
    rest = {key: value for key, value in state.items() if key != twice}
    note = f"positions of texts: the sum of {place} and {twice}, which an old model added both"
    return rest | {place: state[place] + state[twice]}, (note,)


def _is_bert(found: Checkpoint, root: str) -> bool:
    return found.any(f"{root}BertEncoder_0/")


def _words(found: Checkpoint, root: str) -> str:
    bert = f"{root}txt/BertEncoder_0/embedder/embedders_token_ids/embedding"
    return bert if _is_bert(found, f"{root}txt/") else f"{root}txt/Embed_0/embedding"


def _text(found: Checkpoint, *, root: str) -> tuple[TextSettings, Rules]:
    if _is_bert(found, root):
        return _bert_settings(found, root=root), flax_vit.bert_rules(root=root)
    block = f"{root}Encoder_0/encoderblock_0"
    attention, _, inner = flax_vit.numbers_of(found, root)
    width = found.shape(f"{root}Embed_0/embedding")[1]
    settings = TextSettings(
        name="siglip",
        tokenizer="",
        layers=found.count(rf"{root}Encoder_0/encoderblock_(\d+)/"),
        dim=width,
        heads=flax_vit.heads_of(found, block, width=width, number=attention),
        context=found.shape(f"{root}pos_embedding")[-2],
        eps=1e-6,
        pool="last",
        head=_head(found, root),
        fixed=True,
        options={"intermediate_size": found.shape(f"{block}/MlpBlock_{inner}/Dense_0/kernel")[-1]},
    )
    return settings, flax_vit.text_rules(found, root=root)


def _bert_settings(found: Checkpoint, *, root: str) -> TextSettings:
    encoder = f"{root}BertEncoder_0"
    places, width = found.shape(f"{encoder}/embedder/embedders_position_ids/embedding")
    layers = f"{encoder}/encoder_block/layer_sequence/layers_"
    return TextSettings(
        name="bert",
        tokenizer="",
        layers=found.count(rf"{layers}(\d+)/"),
        dim=width,
        heads=max(width // BERT_HEAD, 1),
        context=min(CONTEXT, places),
        eps=1e-12,
        pool="cls",
        head=_head(found, root),
        options={
            # flax's gelu is the approximate one unless it is told otherwise.
            "hidden_act": "gelu_pytorch_tanh",
            "intermediate_size": found.shape(f"{layers}0/mlp_block/mlp/dense_layer/bias")[0],
            "max_position_embeddings": places,
            "type_vocab_size": found.shape(f"{encoder}/embedder/embedders_segment_ids/embedding")[0],
        },
    )


def _tokenizer(found: Checkpoint, text: TextSettings, *, root: str) -> Tokenizer:
    bert = text.name == "bert"
    rows = found.shape(_words(found, root))[0]
    file = _beside(found.place, suffix=".txt" if bert else ".model")
    if file is None:
        kind = "vocabulary of BERT (.txt)" if bert else "SentencePiece model (.model)"
        raise UserError(
            f"{found.place} has no tokenizer in it: put the {kind} of {rows:,} entries that it was published with "
            f"beside it, under the same name"
        )
    plain = load_tokenizer(str(file), context=text.context)
    if not bert and plain.eos_id < 0:
        raise UserError(f"{file} has no mark with which LiT ends and pads every text")
    made = without_end(plain) if bert else padded_with_end(plain)
    if made.vocab_size > rows:
        raise UserError(f"{file} has {made.vocab_size:,} entries, but the text tower of {found.place} knows {rows:,}")
    return made


def _beside(place: Path, *, suffix: str) -> Path | None:
    """The tokenizer's file: of the same name as a single file, or the only one of its kind in a folder."""
    if place.is_file():
        same = place.with_suffix(suffix)
        return same if same.is_file() else None
    files = sorted(place.glob(f"*{suffix}"))
    return files[0] if len(files) == 1 else None
