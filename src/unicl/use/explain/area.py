"""Where on a picture the square lies that its model saw."""

from dataclasses import dataclass
from typing import Self

from unicl.data.image import LONGEST, Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A box in pixels of the picture; it reaches beyond the picture where a frame has added to it."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def seen(cls, width: int, height: int, *, size: int, frame: Frame) -> Self:
        """The box of the ``size`` x ``size`` pixels that `unicl.data.image.fit` makes of a picture."""
        side = frame.side(size)
        across, down = _line(width, height, side=side, frame=frame), _line(height, width, side=side, frame=frame)
        (left, right), (top, bottom) = (_cut(start, length, scaled, size) for start, length, scaled in (across, down))
        return cls(left=left, top=top, right=right, bottom=bottom)

    def scaled(self, across: float, down: float) -> Self:
        """The same box on a picture drawn so many times as large."""
        return type(self)(
            left=self.left * across, top=self.top * down, right=self.right * across, bottom=self.bottom * down
        )

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point whose coordinates are shares of the box, 0 to 1."""
        return self.left + x * (self.right - self.left), self.top + y * (self.bottom - self.top)


def _line(length: int, other: int, *, side: int, frame: Frame) -> tuple[float, float, int]:
    """Of one direction: where what is scaled begins, how long it is, and how many pixels it becomes."""
    match frame.mode:
        case "squash":
            return 0.0, float(length), side
        case "pad":
            longer = max(length, other)
            scaled = max(1, round(side * length / longer))
            pixel = length / scaled
            return -((side - scaled) // 2) * pixel, side * pixel, side
        case "crop":
            kept = min(length, LONGEST * min(length, other))
            return float((length - kept) // 2), float(kept), side * kept // min(length, other)


def _cut(start: float, length: float, scaled: int, size: int) -> tuple[float, float]:
    first = start + round((scaled - size) / 2) * length / scaled
    return first, first + size * length / scaled
