"""Features of texts that a locked transformer has read before: each distinct text once, not once a step."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

BYTES: Final = 256_000_000
"""What the kept features of a tower may take; the texts that were not asked for longest are forgotten first."""

Read = Callable[[Sequence[int]], Sequence[Tensor]]
"""Features ``(F,)`` of the rows of a batch of tokens."""


class KeptTexts:
    """Features by text, at most ``limit`` bytes of them."""

    def __init__(self, *, limit: int = BYTES) -> None:
        self.limit: Final = limit
        self._rows: dict[bytes, Tensor] = {}
        self._mark: Hashable = None

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Forget everything."""
        self._rows = {}

    def features(self, tokens: Tensor, mask: Tensor, *, mark: Hashable, read: Read) -> Tensor:
        """``(U, F)`` of ``tokens (U, L)``: what was read before under the same ``mark``, and ``read`` for the rest.

        ``mark`` stands for all that the features depend on besides the text; if it changes, everything is forgotten.
        """
        if mark != self._mark:
            self.clear()
            self._mark = mark
        texts = _texts(tokens, mask)
        new = {text: row for row, text in enumerate(texts) if text not in self._rows}
        found = dict(zip(new, read(list(new.values())), strict=True)) if new else {}
        # What was just asked for goes to the end, behind what has not been asked for since.
        found |= {text: self._rows.pop(text) for text in dict.fromkeys(texts) if text in self._rows}
        self._rows |= found
        self._forget(found[texts[0]].nbytes)
        return torch.stack([found[text] for text in texts])

    def _forget(self, each: int) -> None:
        over = len(self._rows) - self.limit // each
        for text in list(self._rows)[: max(over, 0)]:
            del self._rows[text]


def state_of(module: nn.Module) -> Hashable:
    """What changes whenever a weight is written in place, loaded or moved."""
    return tuple((p.data_ptr(), p._version) for p in module.parameters())


def digest(settings: Sequence[object], state: Mapping[str, Tensor]) -> str:
    """A hash of settings and weights: equal for equal models, wherever they lie and however they are laid out."""
    found = hashlib.sha256(repr(list(settings)).encode())
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _texts(tokens: Tensor, mask: Tensor) -> list[bytes]:
    lengths = mask.sum(1).tolist()
    return [row[:length].tobytes() for row, length in zip(tokens.cpu().numpy(), lengths, strict=True)]
