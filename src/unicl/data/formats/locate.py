"""Image paths of a table to files on disk, never outside the folder that the user named."""

import os
from dataclasses import dataclass
from pathlib import Path

from unicl.errors import UserError


@dataclass(frozen=True, slots=True)
class _Listing:
    folder: Path
    id: str
    names: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()


class Locator:
    """Turns names of a table into `(id, path)`, and counts the files that are not there.

    A relative name starts at ``root`` if it is given, else (or if nothing is there) at ``base``, the folder of the
    table. Each folder is listed once, so a million names cost a million look-ups in memory and no question to the disk.
    """

    def __init__(self, *, base: Path, root: Path | None, where: str) -> None:
        top = base if root is None else root
        self._tops = _both(top)
        self._bases = tuple(dict.fromkeys((str(top.absolute()), str(base.absolute()))))
        self._starts = (*_both(base), *self._tops)
        self._where = where
        self._listings: dict[str, _Listing] = {}
        self.found = 0
        self.missing = 0
        self.first_missing = ""
        self.first_tried = ""

    def locate(self, name: str, *, place: str) -> tuple[str, Path]:
        """The id of a file (its path from the table) and its absolute path; a file that is missing is only counted.

        Raises `UserError` for a name that leaves the data folder, by ``..``, from ``/`` or through a link.
        """
        if "\\" in name:
            name = name.replace("\\", "/")
        folder, _, file = name.rpartition("/")
        if not folder and name.startswith("/"):
            folder = "/"
        listing = self._listings.get(folder) or self._open(folder, name=name, place=place)
        # Joining shares the parts of the folder: half the time and memory of a path made from one string.
        path = listing.folder / file
        if file in listing.names:
            self.found += 1
        else:
            self._miss(path, name=name)
        if file in listing.links or file in ("", ".", ".."):
            self._check(os.path.realpath(path), name=name, place=place)
        return f"{listing.id}{file}", path

    def _miss(self, path: Path, *, name: str) -> None:
        if not self.missing:
            self.first_missing, self.first_tried = name, str(path)
        self.missing += 1

    def _open(self, folder: str, *, name: str, place: str) -> _Listing:
        if "\0" in folder:
            return _Listing(Path(folder), _slashed(folder))
        file = name.rpartition("/")[2]
        places = [os.path.normpath(os.path.join(base, folder)) for base in self._bases]  # noqa: PTH118
        full = next((path for path in places if os.path.lexists(f"{_slashed(path)}{file}")), places[0])
        self._check(full, name=name, place=place)
        self._check(os.path.realpath(full), name=name, place=place)
        names, links = _listed(full)
        listing = _Listing(Path(full), self._id(full), names, links)
        self._listings[folder] = listing
        return listing

    def _id(self, full: str) -> str:
        start = next((top for top in self._starts if _within(full, (top,))), self._starts[-1])
        relative = os.path.relpath(full, start)
        return "" if relative == "." else _slashed(relative.replace(os.sep, "/"))

    def _check(self, full: str, *, name: str, place: str) -> None:
        if not _within(full, self._tops):
            raise UserError(
                f"{self._where}, {place}: the image path {name!r} leaves the data folder {self._tops[0]!r}; if it is "
                "meant, name a folder that holds all images: add root=DIR to the source (root=/ allows every path)"
            )


def inside(path: str, top: Path) -> bool:
    """Whether a resolved path lies in the folder ``top``, as typed or with its links resolved."""
    return _within(path, _both(top))


def _within(full: str, tops: tuple[str, ...]) -> bool:
    return _slashed(full).startswith(tops)


def _both(top: Path) -> tuple[str, str]:
    return _slashed(os.path.normpath(top.absolute())), _slashed(os.path.realpath(top))


def _slashed(path: str) -> str:
    return path if path.endswith("/") else f"{path}/"


def _listed(folder: str) -> tuple[frozenset[str], frozenset[str]]:
    try:
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_symlink()) for entry in entries]
    except OSError:
        return frozenset(), frozenset()
    return frozenset(name for name, _ in listed), frozenset(name for name, link in listed if link)
