"""What a teacher says of images, to be learned from."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.objective.peers import Shared, nothing, total
from unicl.objective.plan import Tiling


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """The image vectors of a ``teacher``, a model that `unicl.published.load` reads, are learned from (cn_clip)."""

    kind: Literal["distill"] = "distill"
    name: str = "distill"
    weight: float = 0.5
    teacher: str


class Distill(nn.Module):
    """The distance of image vectors to a teacher's, by the cosine (Chinese-CLIP's released code)."""

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, shared: Shared, tiling: Tiling = Tiling()) -> Tensor:
        """The mean of ``1 - cosine`` over all images; vectors of another width are drawn to a teacher's linearly."""
        del tiling
        taught, whole = shared.columns.taught, shared.columns.images.whole
        if taught is None:
            raise UserError(f"the term {self.settings.name!r} has no teacher here; train with `unicl train`")
        if not shared.image_keys.size:
            return nothing(shared.columns)
        drawn = F.interpolate(whole[:, None], size=taught.shape[1], mode="linear")[:, 0] if len(whole) else whole
        own = (1 - F.cosine_similarity(drawn, taught.to(drawn))).sum() if len(whole) else whole.sum()
        return total(own / shared.image_keys.size, peers=shared.peers)
