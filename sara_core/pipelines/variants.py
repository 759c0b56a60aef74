"""Parts of a diffusers folder whose weights are there in a variant only, as `*.fp16.safetensors`: diffusers opens no
variant unless it is told which, and then takes it for every part that has it too. Here, as in `files.source`, a part is
opened without a variant wherever it can be."""

from collections.abc import Iterable
from pathlib import Path

from ..files.source import WEIGHTS_FILE, preferred_variant


def only_variant(part: Path) -> str | None:
    """The variant that the folder of a part must be opened in, or None if it needs none, or has no such weights."""
    matches = [match for path in part.glob("*.safetensors") if (match := WEIGHTS_FILE.fullmatch(path.name))]
    variants = {match["variant"] or "" for match in matches}
    return (preferred_variant(variants) if variants else "") or None


def needed_variants(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """The parts of a pipeline's folder that are there in a variant only, each with the variant to open it in."""
    return {part: variant for part in parts if (variant := only_variant(folder / part)) is not None}
