"""Reports: their sections by their headings, from text and from XML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from xml.etree import ElementTree

from unicl.data.formats.encodings import decode_text
from unicl.data.reports.sentences import ITEM, UNSPACED

ASIDE: Final = ("indication", "comparison", "technique", "examination", "recommendation")
"""Sections that say what was asked or done; they are not read where the sections that were asked for are missing."""
_SAME: Final = MappingProxyType(
    {
        **dict.fromkeys(("finding", "description", "observations"), "findings"),
        **dict.fromkeys(("impressions", "conclusion", "conclusions", "opinion"), "impression"),
        **dict.fromkeys(("indications", "history", "clinical history", "clinical information"), "indication"),
        **dict.fromkeys(("clinical indication", "reason for exam", "reason for examination"), "indication"),
        **dict.fromkeys(("reason for the exam", "reason for study", "reason for the examination"), "indication"),
        **dict.fromkeys(("exam", "procedure", "study"), "examination"),
        **dict.fromkeys(("comparisons", "prior studies"), "comparison"),
        "techniques": "technique",
        **dict.fromkeys(("recommendations", "recommendation(s)"), "recommendation"),
        **dict.fromkeys(("影像所见", "检查所见", "影像表现", "影像学表现", "所见"), "findings"),
        **dict.fromkeys(("诊断意见", "影像诊断", "诊断印象", "印象", "结论"), "impression"),
        **dict.fromkeys(("临床诊断", "临床资料", "病史", "主诉"), "indication"),
        **dict.fromkeys(("检查方法", "检查技术"), "technique"),
        **dict.fromkeys(("检查部位", "检查项目"), "examination"),
    }
)
"""Headings that mean the same section."""
_KNOWN: Final = "|".join(sorted({*_SAME, *_SAME.values(), "findings and impression"}, key=len, reverse=True))
_KNOWN_RE: Final = _KNOWN.replace("(", r"\(").replace(")", r"\)")
_HEADING: Final = re.compile(
    rf"(?:^[ \t]*(?P<line>(?i:{_KNOWN_RE})|[A-Z][A-Z ,/&()-]{{2,50}})|(?<!\w)(?P<inline>{_KNOWN_RE.upper()}))"
    r"[ \t]*[:：]",
    re.MULTILINE,
)
_SHORT_LINE: Final = 50
"""A line of so few characters was ended by its writer, and not by the width of the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report under one heading, as one line a paragraph; text before the first heading is called ""."""

    name: str
    text: str

    def means(self, wanted: Sequence[str]) -> bool:
        """Whether its heading is or holds one of these names, as "findings and impression" holds two."""
        parts = re.split(r"\s*(?:/|&|,|\band\b)\s*", self.name)
        return any(section_name(part) in wanted for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report: ``image`` is the file that it describes, if a table says so, ``terms`` what the collection's own
    indexers wrote of it (MeSH's major terms of Indiana University's collection)."""

    id: str
    sections: tuple[Section, ...]
    image: str | None = None
    terms: tuple[str, ...] = ()

    def has(self, wanted: Sequence[str]) -> bool:
        """Whether any of these sections is there."""
        return any(part.means(wanted) for part in self.sections)

    def text(self, wanted: Sequence[str]) -> str:
        """The sections of these names, each on lines of its own; of a report that has none of them, all but `ASIDE`."""
        chosen = [part.text for part in self.sections if part.means(wanted)]
        return "\n".join(chosen or [part.text for part in self.sections if not part.means(ASIDE)])


def report_of(content: bytes, *, id: str, encoding: str = "") -> Report:
    """A report from the content of a file; raises `UserError` or ValueError if it is none."""
    if id.casefold().endswith(".xml"):
        return _of_xml(content, id=id)
    return Report(id=id, sections=sections(decode_text(content, encoding=encoding, where=id)))


def section_name(heading: str) -> str:
    """What a section is called here, whatever the heading: "conclusion" is "impression"."""
    plain = " ".join(heading.casefold().split())
    return _SAME.get(plain, plain)


def sections(text: str) -> tuple[Section, ...]:
    """A report by its headings: known ones, and any line that begins with words in capitals and a colon."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = list(_HEADING.finditer(text))
    starts = [0, *(match.end() for match in found)]
    ends = [*(match.start() for match in found), len(text)]
    names = ["", *(match["line"] or match["inline"] for match in found)]
    parts = zip(names, starts, ends, strict=True)
    read = (Section(name=section_name(name), text=paragraphs(text[start:end])) for name, start, end in parts)
    return tuple(part for part in read if part.text)


def paragraphs(text: str) -> str:
    """Text as one line a paragraph or item of a list: lines that end at the width of the page are joined."""
    found: list[str] = []
    is_open, last = False, ""
    for line in (line.strip() for line in text.split("\n")):
        is_unspaced = UNSPACED.match(line) is not None
        # Signs that take no spaces are twice as wide, and have no capitals.
        is_own = len(last) < _SHORT_LINE // 2 if is_unspaced else len(last) < _SHORT_LINE and line[:1].isupper()
        if line and is_open and not is_own and not ITEM.match(line):
            found[-1] += line if is_unspaced and UNSPACED.match(last[-1]) else f" {line}"
        elif line:
            found.append(line)
        is_open, last = bool(line), line
    return "\n".join(" ".join(paragraph.split()) for paragraph in found)


def _of_xml(content: bytes, *, id: str) -> Report:
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"broken XML: {error}") from error
    found = [(part.get("Label") or "", "".join(part.itertext())) for part in root.iter("AbstractText")]
    if not found:
        raise ValueError(f"the XML has no AbstractText, but begins with <{root.tag}>; wanted is the layout of NLMCXR")
    parts = (Section(name=section_name(name), text=paragraphs(text)) for name, text in found)
    terms = tuple((term.text or "").strip() for term in root.iter("major"))
    return Report(id=id, sections=tuple(part for part in parts if part.text), terms=terms)
