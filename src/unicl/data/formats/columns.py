"""Which column of a table holds the image, the texts, the label and the patient."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from unicl.data.spec import Spec
from unicl.errors import UserError, suggest

USUAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image": (
            *("image", "filepath", "file_path", "image_path", "img_path", "file_name", "filename", "image_name"),
            *("image_file", "path", "file", "img", "images", "photo", "picture", "image_bytes", "img_bytes", "bytes"),
            *("image_base64", "base64", "jpg", "jpeg", "png", "webp"),
            *("图片", "图像", "图片路径", "图像路径", "路径", "文件", "文件名", "照片"),
        ),
        "text": (
            *("txt", "caption", "captions", "text", "texts", "title", "alt", "alt_text", "description", "descriptions"),
            *("sentence", "sentences", "comment", "raw", "prompt"),
            *("标题", "文本", "描述", "图片描述", "说明", "文字", "内容"),
        ),
        "label": (
            *("class_name", "label_name", "category_name", "class", "classname", "label", "labels", "classes"),
            *("category", "categories", "cls", "target", "fine_label"),
            *("类别", "标签", "分类", "种类", "类"),
        ),
        "patient": ("patient", "patient_id", "patientid", "subject_id", "患者", "病人", "患者id", "病人id"),
        "url": ("url", "image_url", "img_url", "uri", "link", "链接", "图片链接"),
    }
)
"""The usual names of each column, the likeliest first, in the form that `_plain` gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns in use; ``texts`` are several when captions stand in columns of their own.

    Rows with an equal value in the column ``study`` are one sample, and those with one in ``patient`` are of one.
    """

    image: str | None
    texts: tuple[str, ...]
    label: str | None
    study: str | None = None
    patient: str | None = None
    findings: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """Image, texts, label, study, patient, findings, as far as there are any: the order of a row's values."""
        image, *others = (
            () if name is None else (name,) for name in (self.image, self.label, self.study, self.patient)
        )
        return (*image, *self.texts, *(name for other in others for name in other), *self.findings)

    def described(self) -> dict[str, str]:
        """What to print: the role and the columns that fill it."""
        several = f"{self.findings[0]} and {len(self.findings) - 1} more" if len(self.findings) > 1 else None
        findings = several or next(iter(self.findings), None)
        roles = {
            "image": self.image,
            "text": ", ".join(self.texts) or None,
            "label": self.label,
            "study": self.study,
            "patient": self.patient,
            "findings": findings,
        }
        return {role: column for role, column in roles.items() if column is not None}


def choose(columns: Iterable[str], spec: Spec, *, where: str, has_image: bool = False) -> Columns:
    """The columns that the query names, or else those with the usual names.

    ``has_image`` says that the images come from elsewhere (files, members of an archive).
    Raises `UserError` for a named column that is not there, and when nothing fits.
    """
    found = tuple(columns)
    image = None if has_image else _one("image", spec.image, found=found, where=where)
    texts = _texts(spec.text, found=found, where=where)
    label = _one("label", spec.label, found=found, where=where)
    study = _named("study", spec.study, found=found, where=where) if spec.study else None
    patient = _one("patient", spec.patient, found=found, where=where)
    chosen = Columns(image=image, texts=texts, label=label, study=study, patient=patient)
    if has_image:
        return chosen
    address = _guess("url", found)
    if image is None and spec.image is None and address is not None:
        raise UserError(
            f"{where} names its images by address only (column {address!r}) and unicl fetches nothing: download them "
            f"(for example with img2dataset), or write {spec.path.name}?image= to use the texts alone"
        )
    if not (image or texts or label or study) and spec.findings is None:
        raise UserError(
            f"{where}: no column of {listed(found)} has a usual name for an image, a text or a label; "
            f"name them, for example {spec.path.name}?image=COLUMN&text=COLUMN{_headless(found)}"
        )
    return chosen


def listed(columns: Iterable[str]) -> str:
    """Names in quotes for a message, at most twenty of them."""
    names = [repr(column) for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "(none)"


def _one(role: str, asked: str | None, *, found: tuple[str, ...], where: str) -> str | None:
    if asked is None:
        return _guess(role, found)
    if asked == "":
        return None
    return _named(role, asked, found=found, where=where)


def _named(role: str, asked: str, *, found: tuple[str, ...], where: str) -> str:
    if asked in found:
        return asked
    raise UserError(
        f"{where} has no column {asked!r}{suggest(asked, found)}, which {role}= names; it has {listed(found)}"
    )


def _texts(asked: str | None, *, found: tuple[str, ...], where: str) -> tuple[str, ...]:
    if asked is None:
        first = _guess("text", found)
        return _numbered(found) if first is None else _siblings(first, found)
    if asked == "":
        return ()
    names = [asked] if asked in found else asked.split(",")
    return tuple(_named("text", name, found=found, where=where) for name in names)


def _guess(role: str, found: tuple[str, ...]) -> str | None:
    plain = {_plain(name): name for name in reversed(found)}
    return next((plain[name] for name in USUAL[role] if name in plain), None)


def _numbered(found: tuple[str, ...]) -> tuple[str, ...]:
    """Columns like ``caption_0, caption_1``, of the likeliest stem."""
    for stem in USUAL["text"]:
        if columns := _with_number(stem, found):
            return columns
    return ()


def _siblings(first: str, found: tuple[str, ...]) -> tuple[str, ...]:
    return (first, *_with_number(_plain(first), found))


def _with_number(stem: str, found: tuple[str, ...]) -> tuple[str, ...]:
    matches = [(re.fullmatch(re.escape(stem) + r"_?(\d+)", _plain(name)), name) for name in found]
    numbered = sorted((int(match[1]), name) for match, name in matches if match)
    return tuple(name for _, name in numbered)


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())


def _headless(found: tuple[str, ...]) -> str:
    looks_like_data = any(re.search(r"\.(jpe?g|png|webp|gif|bmp)$", name.casefold()) for name in found)
    return "; the first row looks like data: add a header row such as 'file,title'" if looks_like_data else ""
