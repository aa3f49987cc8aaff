"""Language-image models on any mix of labelled, captioned and unpaired data."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicl.data.sources import load_all as load_data
    from unicl.errors import BadImage, UserError
    from unicl.model import TwoTowers
    from unicl.published import load
    from unicl.recipes import Recipe
    from unicl.run import Job, train

__all__ = ["BadImage", "Job", "Recipe", "TwoTowers", "UserError", "load", "load_data", "train"]

_HOMES = (
    ("BadImage", "unicl.errors", "BadImage"),
    ("Job", "unicl.run", "Job"),
    ("Recipe", "unicl.recipes", "Recipe"),
    ("TwoTowers", "unicl.model", "TwoTowers"),
    ("UserError", "unicl.errors", "UserError"),
    ("load", "unicl.published", "load"),
    ("load_data", "unicl.data.sources", "load_all"),
    ("train", "unicl.run", "train"),
)


def __getattr__(name: str) -> Any:
    # Looked up when first used, so that `import unicl` does not load torch.
    for public, module, own in _HOMES:
        if name == public:
            return getattr(importlib.import_module(module), own)
    raise AttributeError(f"module 'unicl' has no attribute {name!r}")
