"""Towers that name their tensors as other projects do, where no package carries the original: a second implementation.

Written from the papers (Swin: arXiv 2103.14030, section 3; CLIP: arXiv 2103.00020, section 2.4), with the names of
microsoft/UniCL.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers everywhere, in norms and running statistics too, so that no entry can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point() or name.endswith("attn_mask"):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.1 * noise.abs())
            elif value.ndim < 2:
                value.add_(0.1 * noise)
            else:
                value.copy_(noise / math.sqrt(value[0].numel()))
    return module.eval()


class WindowAttention(nn.Module):
    def __init__(self, width: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        span = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(span * span, heads))
        places = torch.tensor([(row, column) for row in range(window) for column in range(window)])
        offsets = places[:, None] - places[None] + window - 1
        self.register_buffer("relative_position_index", offsets[..., 0] * span + offsets[..., 1])
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        windows, places, width = tokens.shape
        query, key, value = self.qkv(tokens).view(windows, places, 3, self.heads, -1).unbind(2)
        scores = torch.einsum("wqhd,wkhd->whqk", query, key) / math.sqrt(width // self.heads)
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if bias is not None:
            scores = scores + bias.repeat(windows // len(bias), 1, 1)[:, None]
        mixed = torch.einsum("whqk,wkhd->wqhd", scores.softmax(-1), value)
        return self.proj(mixed.reshape(windows, places, width))


class Block(nn.Module):
    def __init__(self, width: int, *, heads: int, side: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.side, self.window = side, min(window, side)
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads=heads, window=self.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.register_buffer("attn_mask", self._mask() if self.shift else None)

    def _mask(self) -> Tensor:
        """Places that the roll brought together although they were apart do not see each other."""
        region = torch.bucketize(
            torch.arange(self.side), torch.tensor([self.side - self.window, self.side - self.shift]), right=True
        )
        regions = self._cut((3 * region[:, None] + region[None])[None, ..., None].float())[..., 0]
        return (regions[:, None] != regions[:, :, None]).float() * -100

    def _cut(self, grid: Tensor) -> Tensor:
        number = self.side // self.window
        cut = grid.view(len(grid), number, self.window, number, self.window, -1).transpose(2, 3)
        return cut.reshape(len(grid) * number * number, self.window * self.window, -1)

    def _join(self, windows: Tensor) -> Tensor:
        number = self.side // self.window
        cut = windows.view(-1, number, number, self.window, self.window, windows.shape[-1]).transpose(2, 3)
        return cut.reshape(-1, self.side, self.side, windows.shape[-1])

    def forward(self, tokens: Tensor) -> Tensor:
        grid = self.norm1(tokens).view(len(tokens), self.side, self.side, -1)
        rolled = grid.roll((-self.shift, -self.shift), (1, 2))
        mixed = self._join(self.attn(self._cut(rolled), self.attn_mask)).roll((self.shift, self.shift), (1, 2))
        tokens = tokens + mixed.flatten(1, 2)
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


class Merging(nn.Module):
    def __init__(self, width: int, *, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tokens.view(len(tokens), self.side, self.side, -1)
        corners = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1).flatten(1, 2)))


class Swin(nn.Module):
    """Microsoft's names; ``(N, 3, S, S)`` to the mean of the last tokens ``(N, F)``."""

    def __init__(
        self, *, size: int, width: int, depths: tuple[int, ...], heads: tuple[int, ...], classes: int = 0
    ) -> None:
        super().__init__()
        side = size // 4
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 4, 4), "norm": nn.LayerNorm(width)})
        self.layers = nn.ModuleList()
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            blocks = [
                Block(width << stage, heads=count, side=side >> stage, window=7, shifted=place % 2 == 1)
                for place in range(depth)
            ]
            parts: dict[str, nn.Module] = {"blocks": nn.ModuleList(blocks)}
            if stage + 1 < len(depths):
                parts["downsample"] = Merging(width << stage, side=side >> stage)
            self.layers.append(nn.ModuleDict(parts))
        self.norm = nn.LayerNorm(width << (len(depths) - 1))
        if classes:
            self.head = nn.Linear(width << (len(depths) - 1), classes)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patch_embed["norm"](self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2))
        for layer in self.layers:
            for block in layer["blocks"]:
                tokens = block(tokens)
            if "downsample" in layer:
                tokens = layer["downsample"](tokens)
        return self.norm(tokens).mean(1)


class TextBlock(nn.Module):
    def __init__(self, width: int, *, heads: int, eps: float) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width, eps=eps)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        normed = self.ln_1(states)
        states = states + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        inner = self.mlp["c_fc"](self.ln_2(states))
        return states + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class CausalText(nn.Module):
    """UniCL's names; ids ``(U, context)``, padded with the end mark, to states at the first largest id."""

    def __init__(self, *, vocab: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.resblocks = nn.ModuleList(TextBlock(width, heads=heads, eps=1e-12) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        states = self.token_embedding(ids) + self.positional_embedding
        for block in self.resblocks:
            states = block(states, mask)
        return self.ln_final(states)[torch.arange(len(ids)), ids.argmax(-1)]


class Unicl(nn.Module):
    """A Swin and a causal text transformer, their projections, and the logarithm of the scale."""

    def __init__(self, *, image: str, text: str, projection: str, width: int, size: int = 56, classes: int = 0) -> None:
        super().__init__()
        self.add_module(image, Swin(size=size, width=16, depths=(2, 1), heads=(2, 4), classes=classes))
        self.add_module(text, CausalText(vocab=49_408, context=24, width=64, layers=2, heads=1))
        self.names = (image, text, projection)
        self.register_parameter(projection, nn.Parameter(torch.zeros(32, width)))
        self.text_projection = nn.Parameter(torch.zeros(64, width))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def encode_image(self, pixels: Tensor) -> Tensor:
        image, _, projection = self.names
        return F.normalize(self.get_submodule(image)(pixels) @ self.get_parameter(projection), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        return F.normalize(self.get_submodule(self.names[1])(ids) @ self.text_projection, dim=-1)
