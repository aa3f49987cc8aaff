"""Labels, texts, samples and images to 64-bit keys that are the same in every process and in every run."""

import unicodedata
from hashlib import blake2b, sha256

from unicl.space import NO_KEY, ImageSource, Slice, Streamed


def class_key(namespace: str, label: str) -> int:
    """The key of a class: equal labels of two namespaces are two classes."""
    return _hash("class", namespace, label)


def text_key(text: str) -> int:
    """The key of a text: equal strings have one key (Florence, section 2.2), after `normalise`."""
    return _hash("text", normalise(text))


def finding_key(name: str) -> int:
    """The key of a finding: equal names are one finding, whatever table they stand in."""
    return _hash("finding", normalise(name))


def sample_key(source: str, id: str) -> int:
    """The key of one sample of one source: nothing else in the world has it."""
    return _hash("sample", source, id)


def image_key(image: ImageSource) -> int:
    """The key of an image as it stands: its place and its `stamp`, so that a changed file is another image."""
    match image:
        case bytes():
            place = ""
        case Streamed():
            place = image.tar.address
        case Slice():
            place = str(image.path.absolute())
        case _:
            place = str(image.absolute())
    return _hash("image", place, stamp(image))


def stamp(image: ImageSource) -> str:
    """What changes when a picture changes: size and time of its file, or a hash of bytes; "" if it is gone."""
    if isinstance(image, bytes):
        return sha256(image).hexdigest()[:32]
    if isinstance(image, Streamed):
        return f"{image.tar.size}-{image.offset}-{image.size}"
    path = image.path if isinstance(image, Slice) else image
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return ""
    where = f"-{image.offset}-{image.size}" if isinstance(image, Slice) else ""
    return f"{facts.st_size}-{facts.st_mtime_ns}{where}"


def normalise(text: str) -> str:
    """The form in which two texts are compared: Unicode NFKC, one blank for any white space, no case."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash(*parts: str) -> int:
    # The length before each part keeps ("a", "bc") and ("ab", "c") apart.
    content = b"".join(len(p := part.encode("utf-8", "surrogatepass")).to_bytes(8, "big") + p for part in parts)
    value = int.from_bytes(blake2b(content, digest_size=8).digest(), "big", signed=True)
    return value if value != NO_KEY else 1
