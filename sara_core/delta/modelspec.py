"""What LoRA managers read of a file: the `modelspec.` keys of its metadata.

Stability.AI Model Metadata Standard Specification 1.0.0, https://github.com/Stability-AI/ModelSpec; `tags`, separated
by commas, is not in it, but what model browsers (ComfyUI's among them) read beside it.
"""

import base64
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from ..names.families import FAMILIES
from ..names.family_names import layout_name

PREFIX = "modelspec."
VERSION_KEY, ARCHITECTURE, HASH = (PREFIX + name for name in ("sai_model_spec", "architecture", "hash_sha256"))
TITLE, AUTHOR, DESCRIPTION, LICENSE, TRIGGER, THUMBNAIL = (
    PREFIX + name for name in ("title", "author", "description", "license", "trigger_phrase", "thumbnail")
)
VERSION = "1.0.0"
IMPLEMENTATION = "https://github.com/comfyui-sara/comfyui-sara"

_ADAPTER = "/sara"


def architecture(family: str) -> str:
    """Identifier of a delta for this family ("SD1.5", "Flux" …), as a LoRA's ends in "/lora"."""
    family = layout_name(family)
    known = FAMILIES.get(family)
    return (known and known.architecture or family.lower().replace(" ", "-")) + _ADAPTER


def described(
    metadata: Mapping[str, str], family: str, fallback_title: str, fields: Mapping[str, str], now: datetime
) -> dict[str, str]:
    """The metadata with all that the specification demands, except the hash, which comes when the file is written.

    fields: "title", "author", "description", "trigger_phrase", "tags", "thumbnail" … → what a person said; where that
        is empty, what the metadata say already stays
    fallback_title: for a delta that has no title yet; now: for one that has no date yet, with its time zone
    """
    said = {PREFIX + name: text.strip() for name, text in fields.items() if text.strip()}
    defaults = {
        TITLE: fallback_title,
        PREFIX + "date": now.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    fixed = {
        VERSION_KEY: VERSION,
        ARCHITECTURE: architecture(family or "unknown"),
        PREFIX + "implementation": IMPLEMENTATION,
    }
    return {**defaults, **metadata, **said, **fixed}


def trigger_of(metadata: Mapping[str, str]) -> str:
    """The words that bring out what a file's model learned, in one line; empty if it says none."""
    return " ".join(metadata.get(TRIGGER, "").split())


def joined_triggers(files: Iterable[Mapping[str, str]]) -> str:
    """Those of several files' metadata, in their order, each once, with commas between."""
    return ", ".join(dict.fromkeys(filter(None, map(trigger_of, files))))


def as_lora(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata for a file that holds the same change as a LoRA or as dense differences."""
    others = {key: text for key, text in metadata.items() if key != HASH}
    if ARCHITECTURE in others:
        others[ARCHITECTURE] = others[ARCHITECTURE].removesuffix(_ADAPTER) + "/lora"
    return others


def data_url(jpeg: bytes) -> str:
    """A JPEG as the text that `thumbnail` is; the specification recommends 256 × 256 pixels."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
