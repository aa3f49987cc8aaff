"""What the user types for a source: a path, and after ``?`` how to read it."""

import codecs
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from unicl.data.elevater import own_names
from unicl.errors import UserError, suggest

FIELDS = (
    *("image", "text", "label", "findings", "study", "patient", "where", "only", "seed", "weight", "namespace"),
    *("encoding", "names", "root", "format", "stream"),
)
ENCODINGS = ("utf-8", "gb18030", "gbk", "big5", "shift_jis", "euc_kr", "latin-1", "cp1252", "utf-16")
REMOTE = ("https://", "http://", "pipe:")
PROMPTS = "prompts"
"""The format of sets of prompts, whose place is a set's name or a file."""
MAX_FILES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One source as typed: its files and the fields of its query.

    ``image``, ``text``, ``label``, ``patient`` name columns: None is a guess, "" is none. ``findings`` names columns
    with commas between; "*" is every column that holds nothing else. ``encoding`` "" is UTF-8 or what the file's byte
    order mark says. ``paths`` are absolute and exist; ``path`` is the one that was typed. ``remote`` are
    addresses of tars that are to be fetched, which then become the paths; with ``stream`` not all of them are kept,
    and the samples are shuffled by tars and over ``reach`` samples, 0 being a number that suits the tars. ``where`` are
    columns of a table and the value that a row must have in each to be read. ``study`` names a column whose equal
    values make one sample; ``only`` draws images of one finding, by ``seed`` (`unicl.data.exclusive`).
    """

    typed: str
    path: Path
    paths: tuple[Path, ...]
    image: str | None = None
    text: str | None = None
    label: str | None = None
    findings: str | None = None
    study: str | None = None
    patient: str | None = None
    only: str | None = None
    seed: int = 0
    where: tuple[tuple[str, str], ...] = ()
    weight: float = 1.0
    namespace: str | None = None
    encoding: str = ""
    names: Path | None = None
    root: Path | None = None
    format: str | None = None
    remote: tuple[str, ...] = ()
    stream: bool = False
    reach: int = 0

    @property
    def name(self) -> str:
        """The last part of the path as typed."""
        return self.path.name or self.path.resolve().name or "data"

    @property
    def folder(self) -> Path:
        """The folder that the source is or lies in."""
        return _folder(self.paths) if self.paths else Path.cwd()

    def files(self, *suffixes: str) -> dict[str, Path]:
        """The files of the source by their path from its folder; a folder gives those with one of the suffixes."""
        files = [file for path in self.paths for file in (_inside(path, suffixes) if path.is_dir() else [path])]
        if not files:
            raise UserError(f"the folder {self.typed!r} holds no {' or '.join(suffixes)} files")
        return {file.relative_to(self.folder).as_posix(): file for file in files}


def parse(typed: str) -> Spec:
    """Read ``PATH`` or ``PATH?field=value&...``; a file whose own name holds ``?`` is taken as it is.

    Raises `UserError` for a path that is not there, an unknown field or a value that cannot be meant.
    """
    is_remote = typed.startswith(REMOTE)
    place, query = _split_remote(typed) if is_remote else _split(typed)
    fields = _fields(query, typed=typed)
    path = Path(place).expanduser()
    # Sets of prompts have names, and need not be files.
    nowhere = is_remote or (fields.get("format") == PROMPTS and not exists(path))
    paths = () if nowhere else tuple(file.absolute() for file in _expand(place))
    folder = _folder(paths) if paths else Path.cwd()
    stream, reach = _stream(fields.get("stream", "false"), is_remote=is_remote)
    return Spec(
        typed=typed,
        path=Path(_tar_of(place)) if is_remote else path.absolute() if path.name else path.resolve(),
        paths=paths,
        remote=tuple(_braced(place)) if is_remote else (),
        image=fields.get("image"),
        text=fields.get("text"),
        label=fields.get("label"),
        findings=fields.get("findings"),
        study=fields.get("study"),
        patient=fields.get("patient"),
        only=fields.get("only"),
        seed=_seed(fields.get("seed"), draws="only" in fields),
        where=_where(fields.get("where")),
        weight=_weight(fields.get("weight", "1")),
        namespace=fields.get("namespace"),
        encoding=_encoding(fields.get("encoding", "")),
        names=_names(folder, fields.get("names")),
        root=_beside(folder, fields.get("root"), field="root"),
        format=fields.get("format"),
        stream=stream,
        reach=reach,
    )


def exists(path: Path) -> bool:
    """Whether something is at ``path``; a name that the file system cannot hold is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _folder(paths: tuple[Path, ...]) -> Path:
    return Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))


def _inside(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffixes) and not path.name.startswith("."))


def _split(typed: str) -> tuple[str, str]:
    if not typed.strip():
        raise UserError("a source has an empty path; give a file or a folder, for example --data photos/")
    if "://" in typed.partition("?")[0]:
        raise UserError(
            f"{typed!r} is an address; unicl fetches tars from https:// and from commands ('pipe:aws s3 cp s3://.../"
            "{0000..0009}.tar -'): else download it first and give its path"
        )
    if "?" not in typed or exists(Path(typed).expanduser()):
        return typed, ""
    cuts = [at for at, letter in enumerate(typed) if letter == "?"]
    for cut in reversed(cuts):
        if exists(Path(typed[:cut]).expanduser()):
            return typed[:cut], typed[cut + 1 :]
    return typed[: cuts[0]], typed[cuts[0] + 1 :]


def _fields(query: str, *, typed: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        field, equals, value = part.partition("=")
        if field not in FIELDS:
            known = ", ".join(FIELDS)
            raise UserError(f"{typed!r} has the unknown field {field!r}{suggest(field, FIELDS)}; known fields: {known}")
        if not equals:
            raise UserError(f"{typed!r}: the field {field!r} has no value; write {field}=VALUE")
        if field in found:
            raise UserError(f"{typed!r} gives the field {field!r} twice; keep one of them")
        found[field] = unquote(value)
    return found


def _expand(place: str) -> list[Path]:
    path = Path(place).expanduser()
    if exists(path):
        return [path]
    if "{" in place:
        return _existing(_braces(place), place=place)
    if "*" in path.name and (files := sorted(path.parent.glob(path.name))):
        return files
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"there is no file or folder {place!r}{suggest(path.name, near)}")


def _split_remote(typed: str) -> tuple[str, str]:
    """The address or command, and the query; an address may have a query of its own."""
    found = re.search(rf"\?(?=(?:{'|'.join(FIELDS)})=)", typed)
    return (typed, "") if found is None else (typed[: found.start()], typed[found.end() :])


def _tar_of(place: str) -> str:
    """The name of the tars that an address or a command fetches."""
    found = re.findall(r"[^\s/]*\.(?:tar|tgz)[^\s/?]*", place)
    if not found:
        raise UserError(f"{place!r} names no tar; only tars (0000.tar) are fetched: download other data first")
    return str(found[-1])


def _braces(place: str) -> list[Path]:
    return [Path(name).expanduser() for name in _braced(place)]


def _braced(place: str) -> list[str]:
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

    try:
        # The package builds every name before it gives the first, so the ranges are counted beforehand.
        names = list(braceexpand(place)) if _range_size(place) <= MAX_FILES else []
    except UnbalancedBracesError as error:
        raise UserError(
            f"the braces of {place!r} do not match; write a range as 'shards/{{00000..00099}}.tar'"
        ) from error
    if not names:
        raise UserError(f"{place!r} names more than {MAX_FILES:,} files; give a smaller range or a folder")
    return names


def _range_size(place: str) -> int:
    ranges = re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.\d+)?\}", place)
    return math.prod(abs(int(end) - int(start)) + 1 for start, end in ranges)


def _existing(files: list[Path], *, place: str) -> list[Path]:
    missing = [file for file in files if not exists(file)]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(files)} files of {place!r} are not there, the first is {str(missing[0])!r}"
        )
    return files


def _where(text: str | None) -> tuple[tuple[str, str], ...]:
    if text is None:
        return ()
    conditions = text.split(";")
    # A value may hold a semicolon of its own.
    pairs = [each.partition(":") for each in (conditions if all(":" in each for each in conditions) else [text])]
    if not all(column and value for column, _, value in pairs):
        raise UserError(
            f"where={text!r} does not say which rows; write where=COLUMN:VALUE, such as where=split:test, and several "
            "with a semicolon between"
        )
    return tuple((column, value) for column, _, value in pairs)


def _seed(text: str | None, *, draws: bool) -> int:
    if text is None:
        return 0
    if not draws:
        raise UserError("seed= belongs to only=, which draws images; take it away, or add for example only=200")
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"seed={text!r} is not a whole number from 0 on; write for example seed=1")
    return int(text)


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"weight={text!r} is not a positive number; write for example weight=2")
    return weight


def _stream(text: str, *, is_remote: bool) -> tuple[bool, int]:
    if text.casefold() in ("false", "0"):
        return False, 0
    if not is_remote:
        raise UserError("stream= is for tars from https:// and pipe:; those on the disk are read in any order anyway")
    if text.casefold() == "true":
        return True, 0
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"stream={text!r} is neither true nor a number of samples to shuffle over, such as 20000")
    return True, int(text)


def _encoding(name: str) -> str:
    if not name:
        return ""
    try:
        return codecs.lookup(name).name
    except LookupError as error:
        raise UserError(f"encoding={name!r} is not known{suggest(name, ENCODINGS)}") from error


def _names(folder: Path, name: str | None) -> Path | None:
    """A file of class names, or the name of those that come with the library."""
    own = name is not None and name in own_names() and not exists(folder / name)
    return Path(str(name)) if own else _beside(folder, name, field="names")


def _beside(folder: Path, name: str | None, *, field: str) -> Path | None:
    """A file that the query names: beside the data, or else from where the command runs."""
    if not name:
        return None
    typed = Path(name).expanduser()
    for path in (folder / typed, typed.absolute()):
        if exists(path):
            return path
    raise UserError(f"{field}={name}: there is no {str(typed)!r} beside the data in {str(folder)!r} or here")
