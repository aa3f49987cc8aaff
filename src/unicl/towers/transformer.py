"""transformers' text models from their configurations."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.towers.bag import WordEmbeddings

OWN_NAMES: Final = ("clip", "bert", "siglip", "t5", "mt5", "bag")
"""Models that are made from their sizes alone."""


def own_config(name: str, *, layers: int, dim: int, heads: int, context: int, eps: float) -> Any:
    """The configuration of one of `OWN_NAMES`; its MLPs are four times as wide as it is (mT5's gated).

    A bag of words has no layers, whatever it is asked for.
    """
    import transformers

    if name in ("t5", "mt5"):
        return (transformers.T5Config if name == "t5" else transformers.MT5Config)(
            d_model=dim,
            d_kv=dim // heads,
            d_ff=4 * dim,
            num_layers=layers,
            num_heads=heads,
            layer_norm_epsilon=eps,
        )
    kinds: dict[str, Any] = {
        "clip": partial(transformers.CLIPTextConfig, vocab_size=49_408, hidden_act="quick_gelu"),
        "bert": transformers.BertConfig,
        "bag": partial(transformers.BertConfig, ordered=False),
        # Its own marks lie outside the vocabulary that it has by default.
        "siglip": partial(transformers.SiglipTextConfig, bos_token_id=0, eos_token_id=1),
    }
    return kinds[name](
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=0 if name == "bag" else layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        layer_norm_eps=eps,
    )


def make_backbone(config: Any) -> Any:
    """The text model of a configuration, random and without a head; raises `UserError` if there is none."""
    import transformers

    kind = type(config)
    stem = kind.__name__.removesuffix("Config")
    # Of a pair of encoder and decoder (T5, M2M100) the encoder alone reads texts; T5 has a class without the decoder.
    encoder_class = getattr(transformers, f"{stem}EncoderModel", None)
    model_class = (
        encoder_class or transformers.MODEL_MAPPING.get(kind, None) or getattr(transformers, f"{stem}Model", None)
    )
    if model_class is None:
        raise UserError(f"transformers has no text model for a configuration of type {config.model_type!r}")
    if encoder_class or getattr(config, "is_encoder_decoder", False):
        return model_class(config).get_encoder()
    pooled = "add_pooling_layer" in model_class.__init__.__code__.co_varnames
    model = model_class(config, add_pooling_layer=False) if pooled else model_class(config)
    if not getattr(config, "ordered", True):
        model.embeddings = WordEmbeddings(config)
    if config.model_type == "clip_text_model":
        _init_clip(model)
    if config.model_type == "siglip_text_model":
        model.head = nn.Identity()  # the tower has a head of its own
    return model


def states_of(model: Any, tokens: Tensor, *, mask: Tensor | None, layers: int = 1) -> Tensor:
    """``(U, L, F)``: what a model says of each token, the sum of its last ``layers``.

    The last of a model that norms at the end (CLIP, T5) has that norm only there.
    """
    if layers == 1:
        last: Tensor = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return last
    output = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
    states: Tensor = output.last_hidden_state
    return states + torch.stack(output.hidden_states[-layers:-1]).sum(0)


def mean_state(model: Any, tokens: Tensor, *, mask: Tensor | None, states: Sequence[int]) -> Tensor:
    """``(U, L, F)``: the mean of some states of each token, 0 being the embeddings, -1 the last layer's."""
    every = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
    return torch.stack([every[state] for state in states]).mean(0)


def save_memory(model: Any) -> None:
    """Let activations be computed again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@torch.no_grad()
def _init_clip(model: Any) -> None:
    """CLIP's initial weights (openai/CLIP model.py, initialize_parameters), which transformers' differ from."""
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    inner = width**-0.5 * (2 * layers) ** -0.5
    nn.init.normal_(model.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(model.embeddings.position_embedding.weight, std=0.01)
    for layer in model.encoder.layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            nn.init.normal_(part.weight, std=width**-0.5)
        nn.init.normal_(attention.out_proj.weight, std=inner)
        nn.init.normal_(layer.mlp.fc1.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(layer.mlp.fc2.weight, std=inner)
