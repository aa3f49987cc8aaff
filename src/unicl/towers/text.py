"""A transformers model as a text tower: tokens to embeddings."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor, nn

from unicl.data.pieces import Pieces
from unicl.data.text import Tokenizer, load_tokenizer, padded_with_end, train_tokenizer, without_end
from unicl.errors import UserError, suggest
from unicl.space import Embedding, Parts, joined
from unicl.towers.heads import HeadKind, Option, Pool, embed, make_head, places_of, pool_tokens
from unicl.towers.kept import KeptTexts, state_of
from unicl.towers.last import clip_text_at
from unicl.towers.lengths import length_groups
from unicl.towers.lora import adapt, check_rank, let_learn
from unicl.towers.parts import Look, PartsHead, TextParts, mean_of, part_places, text_states, with_parts
from unicl.towers.transformer import OWN_NAMES as OWN_NAMES
from unicl.towers.transformer import make_backbone, mean_state, own_config, save_memory, states_of
from unicl.towers.weights import hub, package

NAMES: Final = (*OWN_NAMES, "package:minilm")
_DROPOUTS: Final = (
    "attention_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout_rate",
    "dropout",
    "activation_dropout",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """What a text tower is made of.

    * ``name``: "clip" (causal, QuickGELU), "bert", "siglip", "t5" and "mt5" (read both ways), "bag" (the mean of word
      embeddings, without order or ``layers``), "package:minilm", or a folder or hub name that transformers reads; these
      bring their sizes, so ``layers`` to ``heads`` and ``eps`` are unused.
    * ``tokenizer``: "train" (on the user's texts), "clip", "chinese", a folder, or "" for the model's own.
    * ``end``: how a text ends: with one "mark"; with "none" (LiT's BERT: [CLS] and words, no [SEP]); or "filled" with
      marks up to ``context``, which are read like words (LiT's own transformer).
    * ``pool``: see `unicl.towers.heads.pool_tokens`; "default" is what the model was made for; "parts" is the
      mean of the parts (FILIP, GLoRIA); "padded" the mean of ``context`` places, be they words or padding behind them
      (MedCLIP's code, which pads to the longest text at hand: there, what a text says depends on its neighbours).
    * ``states``: whose mean is pooled, 0 being the embeddings and -1 the last layer; none is the last layer.
    * ``parts``: which tokens are embedded for themselves as well; None is none of them.
    * ``vocab``: entries of a trained tokenizer at most; ``context``: longest text in tokens.
    * ``eps``: of the layer norms; CLIP has 1e-5, UniCL 1e-12.
    * ``fixed``: every text is padded to ``context`` tokens and its padding is read like words (SigLIP, LiT).
    * ``options``: further fields of transformers' configuration, such as ``{"hidden_act": "gelu"}``.
    * ``locked``: the transformer does not learn; its head still does.
    * ``lora``: the rank of adapters that learn in the transformer's place; 0 is none: see `unicl.towers.lora`.
    """

    name: str = "clip"
    tokenizer: str = "train"
    layers: int = 4
    dim: int = 256
    heads: int = 4
    context: int = 77
    vocab: int = 8192
    eps: float = 1e-5
    pool: Literal["default", "eos", "cls", "mean", "max", "last", "parts", "padded"] = "default"
    states: tuple[int, ...] = ()
    parts: TextParts | None = None
    head: HeadKind = "linear"
    fixed: bool = False
    end: Literal["mark", "none", "filled"] = "mark"
    options: Mapping[str, Option] = field(default_factory=dict)
    weights: str = "random"
    locked: bool = False
    lora: int = 0
    dropout: float = 0.0
    checkpointing: bool = False


class TextTower(nn.Module):
    """A transformers model and a head; ``width`` is the embedding's. Weights are random: see `unicl.towers.build`.

    While its head is trained, a locked transformer reads each distinct text once (`keeps`). All processes must agree
    on the texts where reading one is work of them all, as with sharded weights: there, set ``keeps`` to False.

    Raises `UserError` if there is no such model or it does not fit the settings.
    """

    def __init__(
        self,
        settings: TextSettings,
        *,
        width: int,
        vocab_size: int,
        eos_id: int,
        pad_id: int,
        pieces: Pieces | None = None,
    ) -> None:
        super().__init__()
        config = _config(settings, vocab_size=vocab_size, eos_id=eos_id, pad_id=pad_id)
        self.settings = settings
        self.eos_id: Final = eos_id
        self.pad_id: Final = pad_id
        self.causal: Final[bool] = config.model_type == "clip_text_model"
        self.pool: Final[Pool | Literal["parts", "padded"]] = _pool(settings, config)
        _check_states(settings, config)
        self.backbone: Final = make_backbone(config)
        self.feature_width: Final[int] = int(config.hidden_size)
        self.head: Final = make_head(settings.head, features=self.feature_width, width=width)
        self.parts: Final = _parts_head(settings, config, features=self.feature_width, width=width)
        self.pieces: Pieces | None = pieces
        if settings.checkpointing:
            save_memory(self.backbone)
        self.kept: Final = KeptTexts()
        self.keeps = True
        self.locked = False
        self.held: list[nn.Module] = []
        check_rank(settings.lora, locked=settings.locked)
        if settings.lora:
            adapt(self.backbone, rank=settings.lora, probe=self._probe)
        self.lock(settings.locked)

    def lock(self, locked: bool) -> None:
        """Stop the transformer's learning, or let it learn again."""
        self.locked = locked
        self.held = [self.backbone] if locked else []
        self.kept.clear()
        let_learn(self.backbone, learns=not locked)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.held:
            module.eval()
        return self

    def features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(U, F)`` from ``tokens (U, L)`` and ``mask (U, L)`` bool, true where a token is real; padding is right."""
        return self.look(tokens, mask).features

    def look(self, tokens: Tensor, mask: Tensor) -> Look:
        """What the transformer says of texts as in `features`, and of their parts if the settings ask for them."""
        if len(tokens) == 0:
            return self._nothing(tokens)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked):
            if self.settings.parts is not None:
                return self._grouped_parts(tokens, mask)
            if self.pool == "padded":
                return Look(features=self._padded(tokens, mask))
            if not (self.locked and self.keeps and self.training):
                return Look(features=self._grouped(tokens, mask))

            def read(rows: Sequence[int]) -> list[Tensor]:
                return self._each(tokens[rows], mask[rows])

            return Look(features=self.kept.features(tokens, mask, mark=self._mark(tokens.device), read=read))

    def _grouped_parts(self, tokens: Tensor, mask: Tensor) -> Look:
        order, groups = length_groups(mask)
        looks = [self._read_parts(tokens[rows, :length], mask[rows, :length]) for rows, length in groups]
        if len(looks) == 1:
            return looks[0]
        place = order.argsort()
        parts = joined([look.parts for look in looks if look.parts is not None])
        features = torch.cat([look.features for look in looks])[place]
        return Look(features=features, parts=Parts(values=parts.values[place], mask=parts.mask[place]))

    def _read_parts(self, tokens: Tensor, mask: Tensor) -> Look:
        asked = self.settings.parts
        assert asked is not None
        if self.pieces is None:
            raise UserError("parts of a text need the tokenizer's pieces; give TextTower(pieces=tokenizer.pieces)")
        self.pieces = self.pieces.to(tokens.device)
        states = self._states(tokens, mask, layers=asked.layers)
        parts = text_states(states, part_places(tokens, mask, settings=asked, pieces=self.pieces))
        if self.pool == "parts" or self.pool == "padded":  # which no settings with parts have
            return Look(features=mean_of(parts), parts=parts)
        features = pool_tokens(states, pool=self.pool, tokens=tokens, mask=mask, eos_id=self.eos_id)
        return Look(features=features, parts=parts)

    def _padded(self, tokens: Tensor, mask: Tensor) -> Tensor:
        room = (0, self.settings.context - tokens.shape[1])
        # Padding is not attended to, but looks at the words like any place.
        return self._states(nn.functional.pad(tokens, room, value=self.pad_id), nn.functional.pad(mask, room)).mean(1)

    def _states(self, tokens: Tensor, mask: Tensor, *, layers: int = 1) -> Tensor:
        # No token of a causal model sees the padding behind it; without a mask, attention has a faster path.
        seen = None if self.causal else mask
        if self.settings.states:
            return mean_state(self.backbone, tokens, mask=seen, states=self.settings.states)
        return states_of(self.backbone, tokens, mask=seen, layers=layers)

    def _nothing(self, tokens: Tensor) -> Look:
        features = torch.zeros(0, self.feature_width, device=tokens.device, dtype=self.backbone.dtype)
        if self.parts is None:
            return Look(features=features)
        mask = torch.ones(0, 1, device=tokens.device, dtype=torch.bool)
        return Look(features=features, parts=Parts(values=features[:, None], mask=mask))

    def _grouped(self, tokens: Tensor, mask: Tensor) -> Tensor:
        order, groups = length_groups(mask)
        parts = [self._read(tokens[rows, :length], mask[rows, :length]) for rows, length in groups]
        return torch.cat(parts)[order.argsort()] if len(parts) > 1 else parts[0]

    def _each(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        if tokens.device.type != "cpu":
            return [row.clone() for row in self._grouped(tokens, mask)]
        # One by one, a text's numbers do not depend on what it was read with, and a resumed run reads the same ones.
        lengths = mask.sum(1).clamp(min=1).tolist()
        return [self._read(tokens[k : k + 1, :n], mask[k : k + 1, :n])[0] for k, n in enumerate(lengths)]

    def _mark(self, device: torch.device) -> Hashable:
        halved = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        return halved, state_of(self.backbone)

    def _read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.causal and not self.settings.states and (self.pool == "eos" or self.pool == "last"):
            places = places_of(self.pool, tokens=tokens, mask=mask, eos_id=self.eos_id)
            return clip_text_at(self.backbone, tokens, places=places)
        assert self.pool != "parts"
        assert self.pool != "padded"
        states = self._states(tokens, mask)
        return pool_tokens(states, pool=self.pool, tokens=tokens, mask=mask, eos_id=self.eos_id)

    def _probe(self) -> None:
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=self.backbone.device)
        if self.settings.parts is None and self.pool == "padded":
            self._padded(tokens, tokens == 0)
        elif self.settings.parts is None:
            self._read(tokens, tokens == 0)
        else:
            self._states(tokens, tokens == 0, layers=self.settings.parts.layers)

    def forward(self, tokens: Tensor, mask: Tensor) -> Embedding:
        """Tokens as in `features` to an `Embedding` of whole ``(U, D)`` and its parts."""
        look = self.look(tokens, mask)
        if self.parts is None or look.parts is None:
            return embed(look.features, self.head)
        parts = self.parts(look.parts, head=self.head)
        if self.pool == "parts":
            return with_parts(look.features, parts)
        return replace(embed(look.features, self.head), parts=parts)

    def save_config(self, folder: Path) -> None:
        """Write ``config.json``; the folder can then be the ``name`` of this model where the original is missing."""
        self.backbone.config.save_pretrained(folder)


def build_tokenizer(settings: TextSettings, *, texts: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that the settings name; ``texts`` are read only to train one.

    Raises `UserError` if it does not exist, or there is no text to train it on.
    """
    made = _plain_tokenizer(settings, texts)
    if settings.end == "mark":
        return made
    return padded_with_end(made) if settings.end == "filled" else without_end(made)


def _plain_tokenizer(settings: TextSettings, texts: Iterable[str]) -> Tokenizer:
    if settings.tokenizer == "train":
        return train_tokenizer(texts, vocab_size=settings.vocab, context=settings.context, fixed=settings.fixed)
    name = settings.tokenizer or _own_tokenizer(settings)
    if name.startswith("package:") or (name.count("/") == 1 and not Path(name).exists()):
        name = str(_place(name))
    return load_tokenizer(name, context=settings.context, fixed=settings.fixed)


def read_config(name: str) -> Any:
    """transformers' configuration of the text model in a folder, a package or the hub; of a pair, its text half.

    Raises `UserError` if there is none.
    """
    from transformers import AutoConfig

    place = _place(name)
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{place} holds no text model that transformers can read: {error}") from error
    return getattr(config, "text_config", None) or config


def _own_tokenizer(settings: TextSettings) -> str:
    match settings.name:
        case "clip":
            return "clip"
        case name if name in OWN_NAMES:
            raise UserError(
                f"the text model {settings.name!r} has no tokenizer of its own; choose train, clip, chinese or a folder"
            )
        case name:
            return str(_place(name))


def _place(name: str) -> Path:
    """Where the folder of a model is: as given, in a package, or in the hub's cache."""
    if name.startswith("package:"):
        return package.text_folder(name.removeprefix("package:"))
    place = Path(name).expanduser()
    if place.is_dir():
        return place
    if place.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"no text model {name!r}: give one of {', '.join(NAMES)}, or a folder{suggest(name, NAMES)}")
    return hub.snapshot(name)


def _config(settings: TextSettings, *, vocab_size: int, eos_id: int, pad_id: int) -> Any:
    if settings.name in OWN_NAMES and settings.dim % settings.heads:
        raise UserError(f"dim {settings.dim} cannot be cut into {settings.heads} heads; make dim a multiple of heads")
    if settings.name in OWN_NAMES:
        sizes = {"layers": settings.layers, "dim": settings.dim, "heads": settings.heads, "context": settings.context}
        config = own_config(settings.name, eps=settings.eps, **sizes)
    else:
        config = read_config(settings.name)
    if settings.weights == "random":
        config.vocab_size = vocab_size
        config.eos_token_id, config.pad_token_id = max(eos_id, 0), pad_id
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, settings.dropout)
    for name, value in settings.options.items():
        setattr(config, name, value)
    _check_sizes(config, settings, vocab_size=vocab_size)
    return config


def _check_sizes(config: Any, settings: TextSettings, *, vocab_size: int) -> None:
    if vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocab_size} entries, but the text model {settings.name!r} knows {config.vocab_size}; "
            "use the model's own tokenizer (tokenizer: '') or random weights"
        )
    # RoBERTa counts positions from its padding id on.
    reserved = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    places = getattr(config, "max_position_embeddings", settings.context) - reserved
    if settings.context > places:
        raise UserError(f"the text model {settings.name!r} reads at most {places} tokens; lower context to that")


def _parts_head(settings: TextSettings, config: Any, *, features: int, width: int) -> PartsHead | None:
    if settings.parts is None and settings.pool == "parts":
        raise UserError("the pool 'parts' is the mean of parts, but none are asked for; set text.parts too")
    layers = int(config.num_hidden_layers)
    if settings.parts is not None and not 1 <= settings.parts.layers <= layers:
        raise UserError(
            f"parts of a text are to add up {settings.parts.layers} layers, but its model has {layers}; set "
            f"text.parts.layers to {layers} or less, or take a text model with more"
        )
    return None if settings.parts is None else PartsHead(settings.parts, features=features, width=width)


def _check_states(settings: TextSettings, config: Any) -> None:
    layers = int(config.num_hidden_layers)
    wrong = [state for state in settings.states if not -layers - 1 <= state <= layers]
    if wrong:
        raise UserError(
            f"a text is to be read from the state {wrong[0]}, but its model has {layers} layers: 0 are the embeddings, "
            f"1 to {layers} the layers, -1 the last one; set text.states to some of these"
        )
    if settings.parts is not None and (settings.states or settings.pool == "padded"):
        raise UserError("parts of a text are read from its last layers; leave text.states and the pool 'padded' out")


def _pool(settings: TextSettings, config: Any) -> Pool | Literal["parts", "padded"]:
    causal = config.model_type == "clip_text_model"
    if causal and settings.pool == "cls":
        raise UserError("pool 'cls' reads the first token, which has seen no other in a causal tower; use eos")
    if settings.pool != "default":
        return settings.pool
    if causal:
        return "eos"
    if config.model_type == "siglip_text_model":
        return "last"
    return "mean" if settings.name in ("package:minilm", "bag") else "cls"
