"""Wukong: CLIP's vision transformer or a Swin, and a causal text transformer that reads Chinese word pieces.

Source: huawei-noah/Pretrained-Language-Model, Noah_WuKong: model/wukong.py, model/vision, model/language,
model/modules.py, model/utils.py and configs. A file holds ``{state_dict}`` with ``visual.*`` and ``transformer.*``. Its
three kinds are told apart by what is inside: token reduction is only in Wukong proper; of the others, the embeddings
of the global kind (CLIP's loss) are as wide as the text tower, those of the token-wise kind (FILIP's) are not. Names
and shapes are those of that code; no released file was at hand to try.
"""

from dataclasses import replace
from typing import Final

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.weights import openai, swin
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import POINT, Rule, Rules, Unused
from unicl.towers.weights.native import Words, vision_settings, words_settings
from unicl.towers.weights.published import Published, assembled

NAME: Final = "Wukong"
VOCABULARY: Final = 21_128
SEP: Final = 102
PAD: Final = 0
FRAME: Final = Frame()
_IMAGE: Final = "visual."
_TEXT: Final = "transformer."
_REDUCED: Final = rf"{_IMAGE}token_(?:reduction|learner)\."
_UNUSED: Final = Unused(
    r"loss\.logit_scale", "the scale of the loss, which the released code does not read: scores are used as they are"
)
_GLOBAL: Final = "embeddings as wide as the text tower: taken for a model of whole vectors (G)"
_TOKENWISE: Final = (
    "compared token by token: scores are means of maxima, a text of fewer tokens than the context counts padding as 0, "
    "and several prompts are joined by the mean of their probabilities, as in the released code"
)


def recognises(found: Checkpoint) -> bool:
    """Whether there are an image tower and, all of it under "transformer.", a text tower."""
    return found.any(_IMAGE) and found.has(f"{_TEXT}token_embedding.weight")


def read(found: Checkpoint) -> Published:
    """Both towers with their heads, and the token reduction; raises `UserError` naming what does not fit."""
    words = _words(found)
    width = openai.size_of(
        found, (f"{_TEXT}text_projection", 1), (f"{_IMAGE}proj", 1), (f"{_IMAGE}head.weight", 0), least=0
    )
    image, image_rules = _image(found)
    text = words_settings(words, tokenizer="chinese")
    tokenwise = found.any(_REDUCED) or width != words.width
    if tokenwise:
        reduced = found.shape(_reducer(found) + "attention_maps.1.weight")[0] if found.any(_REDUCED) else 0
        image = replace(image, pool="parts", parts=ImageParts(reduced=reduced))
        text = replace(text, pool="parts", parts=TextParts(room=words.context))
    model = Published(
        origin=f"{NAME} ({_kind(found, tokenwise=tokenwise)})",
        source=str(found.place),
        image=image,
        text=text,
        width=width,
        state={},
        eos_id=SEP,
        pad_id=PAD,
        vocab_size=words.vocab_size,
        terms=({"kind": "contrast", "similarity": "tokenwise", "options": {"pads": "zero"}},) if tokenwise else (),
        zero_shot={"ensemble": "probabilities"} if tokenwise else {},
        notes=(_TOKENWISE if tokenwise else _GLOBAL,),
    )
    rules = (*_reducer_rules(found), *image_rules, *_TEXT_RULES)
    return assembled(found.state, model, rules=rules, unused=(_UNUSED, *swin.unused(_IMAGE)), scale=False)


def _kind(found: Checkpoint, *, tokenwise: bool) -> str:
    if found.any(_REDUCED):
        return "token-wise, reduced"
    return "token-wise, as FILIP" if tokenwise else "whole vectors, as CLIP"


def _words(found: Checkpoint) -> Words:
    """The text transformer; raises `UserError` if it does not read the vocabulary of the Chinese BERT."""
    table, places = f"{_TEXT}token_embedding.weight", f"{_TEXT}positional_embedding"
    width = openai.size_of(found, (f"{_TEXT}ln_final.weight", 0), (places, 1), (table, 1))
    entries = found.shape(table)[0]
    if entries != VOCABULARY:
        raise UserError(f"{found.place} does not fit: {table} has {entries} entries, in Wukong {VOCABULARY}")
    return Words(
        width=width,
        layers=found.count(rf"{_TEXT}resblocks\.(\d+)"),
        heads=max(width // openai.HEAD, 1),
        inner=4 * width,
        context=openai.size_of(found, (places, 0)),
        vocab_size=entries,
    )


def _image(found: Checkpoint) -> tuple[ImageSettings, Rules]:
    if not found.any(rf"{_IMAGE}layers\."):
        return vision_settings(openai.read_vision(found), frame=FRAME), openai.VIT
    settings = replace(swin.settings(found, swin.names("microsoft", root=_IMAGE), head="affine"), frame=FRAME)
    head = Rule(r"image\.head\.(weight|bias)", rf"{_IMAGE}head.\1")
    return settings, (head, *swin.rules("microsoft", root=_IMAGE, stages=swin.stages_of(settings)))


def _reducer(found: Checkpoint) -> str:
    """Files have the older of two names, which the released code replaces."""
    return f"{_IMAGE}token_{'learner' if found.any(rf'{_IMAGE}token_learner') else 'reduction'}."


def _reducer_rules(found: Checkpoint) -> Rules:
    root, ours = _reducer(found), r"image\.parts\.reducer"
    return (
        Rule(rf"{ours}\.norm\.(weight|bias)", rf"{root}norm.\1"),
        Rule(rf"{ours}\.weigh\.([01])\.weight", rf"{root}attention_maps.\1.weight", POINT),
        Rule(rf"{ours}\.change\.weight", f"{root}feat_conv.weight", POINT),
    )


def _text_rules() -> Rules:
    """OpenAI's, with the tables under the name of the transformer too."""
    own = openai.text_rules()
    return tuple(r if r.theirs.startswith(_TEXT) else replace(r, theirs=_TEXT + r.theirs) for r in own)


_TEXT_RULES: Final = _text_rules()
