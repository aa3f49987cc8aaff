"""Chinese prompts and class names for ELEVATER's twenty sets: ours, and those of an installed cn_clip."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

LABELS: Final = "label_cn.txt"
"""Chinese-CLIP's copies of the sets have the Chinese names here, a class a line, above folders named by numbers."""
OF_CN_CLIP: Final = {
    "elevater": "openai",
    **{
        f"elevater-{name}": name
        for name in (
            *("aircraft", "caltech101", "cars", "cifar100", "country211", "dtd", "eurosat", "fer", "flower", "food"),
            *("hatefulmemes", "kitti", "normal", "patch", "pet"),
        )
    },
}
"""Our names of Chinese-CLIP's lists, and theirs; "elevater" is what its script takes where a set has no list."""

_OWN: Final = "zh-"


def own_prompts() -> dict[str, tuple[str, ...]]:
    """Our own few sentences for each of the twenty sets, such as ``zh-food-101``; they are nobody's standard."""
    return {f"{_OWN}{name}": tuple(found["prompts"]) for name, found in _shipped().items()}


def own_names() -> dict[str, Mapping[str, str]]:
    """English label to our own Chinese name, for the sets that we have named, such as ``zh-cifar-10``."""
    return {f"{_OWN}{name}": found["names"] for name, found in _shipped().items() if "names" in found}


def labels_beside(folder: Path, classes: Sequence[str]) -> Path | None:
    """The file of Chinese names in a folder or above it, if all its classes are numbers."""
    if not classes or not all(name.isascii() and name.isdigit() for name in classes):
        return None
    return next((file for file in (folder / LABELS, folder.parent / LABELS) if file.is_file()), None)


def _shipped() -> dict[str, dict[str, Any]]:
    text = (files("unicl.data") / "templates" / "elevater.json").read_text(encoding="utf-8")
    content: dict[str, dict[str, Any]] = json.loads(text)
    return content
