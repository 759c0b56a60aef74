"""Parts of a diffusers folder whose weights are there in a variant only, as `*.fp16.safetensors`: diffusers opens no
variant unless it is told which, and then takes it for every part that has it too. Here, as in `files.source`, a part is
opened without a variant wherever it can be."""

import re
from collections.abc import Iterable
from pathlib import Path

_PART = r"(?:-\d{5}-of-\d{5})?"
# The number of a file stands before the variant in older folders.
_WEIGHTS = re.compile(rf"(?:diffusion_pytorch_model|model){_PART}(?:\.(?P<variant>\w+))?{_PART}\.safetensors")
_FIRST = ("fp16", "bf16")


def only_variant(part: Path) -> str | None:
    """The variant that the folder of a part must be opened in, or None if it needs none, or has no such weights."""
    matches = [match for path in part.glob("*.safetensors") if (match := _WEIGHTS.fullmatch(path.name))]
    variants = {match["variant"] for match in matches}
    if not variants or None in variants:
        return None
    return next((variant for variant in _FIRST if variant in variants), min(variants))


def needed_variants(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """The parts of a pipeline's folder that are there in a variant only, each with the variant to open it in."""
    return {part: variant for part in parts if (variant := only_variant(folder / part)) is not None}
