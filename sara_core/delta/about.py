"""What people say of a delta, read from its file and written into it: title, trigger words, author, licence, notes."""

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import DeltaError
from ..files import atomic, container, disk, header
from ..wording import Sentence
from . import file_v1, modelspec

# Field → its key in the metadata, and the most characters that are taken.
FIELDS = {
    "title": (modelspec.TITLE, 200),
    "trigger": (modelspec.TRIGGER, 1000),
    "author": (modelspec.AUTHOR, 200),
    "licence": (modelspec.LICENSE, 200),
    "notes": (modelspec.DESCRIPTION, 10_000),
}
_CHUNK = 1 << 22


def about(metadata: Mapping[str, str]) -> dict[str, str]:
    """Field → what the metadata say, cut where it is longer than anyone would write; empty where they say nothing."""
    return {field: metadata.get(key, "").strip()[:most] for field, (key, most) in FIELDS.items()}


def write_about(path: str | os.PathLike, said: Mapping[str, str]) -> None:
    """Write some fields into a delta's file, atomically; its tensors, and what else it says, stay bit for bit.

    said: field → text; what is empty is taken out

    Raises DeltaError for a file that is no delta or cannot be written, for other fields, and for too long a text.
    """
    path = Path(path)
    texts = {FIELDS[field][0]: text for field, text in said.items() if _is_sound(field, text)}
    with header.looked_at(path) as (found, source):
        file_v1.stems(found.tensors, lambda names: Sentence("Only what is said of a delta can be changed here."))
        kept = {key: text for key, text in found.metadata.items() if key not in texts}
        metadata = {**kept, **{key: text.strip() for key, text in texts.items() if text.strip()}}
        disk.check_room(path, found.size, "The delta")
        with atomic.replacing(path) as file:
            container.write_header(file, {container.METADATA: dict(sorted(metadata.items())), **found.tensors})
            _copy(source, file, found)


def _is_sound(field: str, text: object) -> bool:
    if field not in FIELDS:
        raise DeltaError(f"A delta has no '{field}'. It has {', '.join(FIELDS)}.")
    most = FIELDS[field][1]
    if not isinstance(text, str) or len(text) > most:
        raise DeltaError(Sentence(
            "The {field} is too long: write at most {most} characters.", field=field, most=f"{most:,}"
        ))  # fmt: skip
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DeltaError(Sentence(
            "The {field} has half a character in it, which no file can hold. Write it again.", field=field
        )) from error  # fmt: skip
    return True


def _copy(source, file, found: header.Header) -> None:
    source.seek(found.begin)
    left = found.size - found.begin
    while left:
        content = source.read(min(_CHUNK, left))
        if not content:
            raise DeltaError(Sentence("The delta's file became shorter while it was read. Try it again."))
        file.write(content)
        left -= len(content)
