"""Prompts of findings as texts that nobody wrote of an image: each says that one finding is there."""

from collections.abc import Iterator, Mapping

from unicl.data.components import CLASS_SETS
from unicl.data.formats.rows import Reading
from unicl.data.prompts import prompt_set
from unicl.errors import UserError
from unicl.space import Finding, Sample


def prompt_samples(reading: Reading) -> Iterator[Sample]:
    """A text for each prompt of each class, whose finding is the class.

    MedCLIP's code shows an image without a report such a text that shares a finding with it; here texts come
    independently. Raises `UserError` for prompts that belong to no class.
    """
    spec = reading.spec
    name = str(spec.paths[0]) if spec.paths else spec.path.name
    found = prompt_set(name)
    if not isinstance(found, Mapping):
        raise UserError(
            f"the prompts {name!r} fit any class, so that none says which finding is there; give "
            f"{', '.join(CLASS_SETS)}, or a .json file with prompts of classes"
        )
    reading.ledger.note(f"each says one of {len(found)} findings: {', '.join(found)}")
    for finding, prompts in found.items():
        known = ((finding, Finding.PRESENT),)
        for number, prompt in enumerate(dict.fromkeys(prompts)):
            yield Sample(id=f"{finding}/{number}", captions=(prompt,), findings=known)
