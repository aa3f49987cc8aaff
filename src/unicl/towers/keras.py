"""TensorFlow's EfficientNets as ALIGN reads them: the mean of the last stage, padded as Keras pads.

Keras builds the network before it knows the size of its images, so it pads every convolution of stride two as for an
even side. timm looks at the side, and at 289 pixels it gives 10 x 10 places where Keras gives 9 x 9.
"""

from typing import Any, Final

from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from unicl.errors import UserError


class KerasConv(nn.Module):
    """A convolution of stride two, its weights under the same names, padded by ``(k // 2 - 1, k // 2)`` on each axis.

    ``(N, F, H, W)`` to ``(N, G, H // 2, W // 2)`` for a kernel of odd side.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight: Final = conv.weight
        self.bias: Final = conv.bias
        self.stride: Final = conv.stride
        self.groups: Final = conv.groups

    def forward(self, states_NFHW: Tensor) -> Tensor:
        down, across = (size // 2 for size in self.weight.shape[-2:])
        padded = pad(states_NFHW, (across - 1, across, down - 1, down))
        return conv2d(padded, self.weight, self.bias, stride=self.stride, groups=self.groups)


def end_on_last_stage(model: Any) -> None:
    """Let a timm EfficientNet give the mean over the places of its last stage, without the wide layer behind it.

    ALIGN, section 4.1; its paddings become Keras' own. Raises `UserError` for any model but TensorFlow's.
    """
    if not isinstance(getattr(model, "conv_stem", None), Conv2dSame) or not hasattr(model, "conv_head"):
        raise UserError(
            "the pool 'stage' reads TensorFlow's EfficientNets alone, such as tf_efficientnet_b7; use the pool 'avg'"
        )
    width = int(model.conv_head.in_channels)
    model.conv_head, model.bn2 = nn.Identity(), nn.Identity()
    model.num_features = model.head_hidden_size = width
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, Conv2dSame) and part.stride == (2, 2):
                setattr(parent, name, KerasConv(part))
