"""Language-image models on any mix of labelled, captioned and unpaired data."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicl.data.sources import load_all as load_data
    from unicl.errors import BadImage, UserError
    from unicl.model import TwoTowers, load_model
    from unicl.recipes import Recipe
    from unicl.run import Job, train

__all__ = ["BadImage", "Job", "Recipe", "TwoTowers", "UserError", "load_data", "load_model", "train"]

_HOMES = (
    ("BadImage", "unicl.errors", "BadImage"),
    ("Job", "unicl.run", "Job"),
    ("Recipe", "unicl.recipes", "Recipe"),
    ("TwoTowers", "unicl.model", "TwoTowers"),
    ("UserError", "unicl.errors", "UserError"),
    ("load_data", "unicl.data.sources", "load_all"),
    ("load_model", "unicl.model", "load_model"),
    ("train", "unicl.run", "train"),
)


def __getattr__(name: str) -> Any:
    # Looked up when first used, so that `import unicl` does not load torch.
    for public, module, own in _HOMES:
        if name == public:
            return getattr(importlib.import_module(module), own)
    raise AttributeError(f"module 'unicl' has no attribute {name!r}")
