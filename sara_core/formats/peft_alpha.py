"""The alpha of LoRAs that PEFT or diffusers wrote, which stands beside their tensors, not among them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DeltaError

_CONFIG = "adapter_config.json"
# Where diffusers puts the same settings, behind the name of the part of the pipeline.
_METADATA, _PARTS = "lora_adapter_metadata", ("unet.", "transformer.", "")


def alpha_of(path: Path, metadata: Mapping[str, str]) -> float | None:
    """Alpha of the LoRA in a file, None if nothing says it: the factors then count as they are.

    metadata: the file's own
    Raises DeltaError for settings that scale layers differently.
    """
    config = _diffusers(metadata) or _peft(path.with_name(_CONFIG))
    if config.get("use_rslora") or config.get("alpha_pattern"):
        raise DeltaError(
            f"'{path.name}' scales its layers differently (rsLoRA or alpha_pattern). Merge it into its model in PEFT, "
            "and extract the difference from the base with a density."
        )
    alpha = config.get("lora_alpha")
    return float(alpha) if type(alpha) in (int, float) and math.isfinite(alpha) else None


def _diffusers(metadata: Mapping[str, str]) -> dict[str, Any]:
    packed = _parsed(metadata.get(_METADATA, ""))
    for prefix in _PARTS:
        if f"{prefix}lora_alpha" in packed:
            return {name.removeprefix(prefix): value for name, value in packed.items()}
    return {}


def _peft(path: Path) -> dict[str, Any]:
    config = _parsed(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
    return config if config.get("peft_type") == "LORA" else {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"The settings beside the LoRA ({_CONFIG}) are damaged. Get them again.") from error
    return content if isinstance(content, dict) else {}
