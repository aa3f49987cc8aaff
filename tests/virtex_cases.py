"""VirTex's textual head around torch's own decoder, as its released code names and calls it."""

import torch
from torch import nn
from torch.nn import functional as F


class Textual(nn.Module):
    """Names and numbers of virtex/modules/textual_heads.py, embedding.py (kdexd/virtex)."""

    def __init__(self, *, size, features, width, layers, heads, context, dropout=0.1, causal=True):
        super().__init__()
        self.causal = causal
        self.visual_projection = nn.Linear(features, width)
        self.embedding = nn.Module()
        self.embedding.words = nn.Embedding(size, width, padding_idx=0)
        self.embedding.positions = nn.Embedding(context, width)
        self.embedding.layer_norm = nn.LayerNorm(width, eps=1e-8)
        layer = nn.TransformerDecoderLayer(
            width, heads, dim_feedforward=4 * width, dropout=dropout, activation="gelu", batch_first=True
        )
        self.transformer = nn.TransformerDecoder(layer, num_layers=layers)
        self.output = nn.Linear(width, size)
        self.output.weight = self.embedding.words.weight

    def forward(self, tokens, lengths, places):
        number = tokens.shape[1]
        positions = self.embedding.positions(torch.arange(number))
        states = self.embedding.layer_norm(self.embedding.words(tokens) + positions)
        states = states * (tokens != 0)[..., None].to(states)
        future = torch.triu(torch.ones(number, number, dtype=torch.bool), diagonal=1) if self.causal else None
        padding = lengths[:, None] <= torch.arange(number)
        states = self.transformer(states, self.visual_projection(places), tgt_mask=future, tgt_key_padding_mask=padding)
        return self.output(states)


def both(textual):
    """The backward direction: another transformer, everything else the same."""
    other = Textual.__new__(Textual)
    nn.Module.__init__(other)
    other.causal = textual.causal
    other.visual_projection, other.embedding, other.output = (
        textual.visual_projection,
        textual.embedding,
        textual.output,
    )
    layer = textual.transformer.layers[0]
    width, heads = layer.linear1.in_features, layer.self_attn.num_heads
    fresh = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True)
    other.transformer = nn.TransformerDecoder(fresh, num_layers=len(textual.transformer.layers))
    return other


def caption_loss(scores, tokens):
    """CE shifted by one, pads ignored (virtex/models/captioning.py)."""
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
