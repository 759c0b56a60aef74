"""The alphas of adapters that PEFT or diffusers wrote, which stand beside their tensors, not among them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DeltaError
from ...files.source import Source
from ..peft import CONFIG, WEIGHT_FILES, WEIGHTS
from .alpha import Alpha
from .modules import modules_of

# Where diffusers puts the same settings, behind the name of the part of the pipeline.
_METADATA, _PARTS = "lora_adapter_metadata", ("unet.", "transformer.", "")
# What stands before a module's name in the files of either.
_PREFIX = re.compile(r"(base_model\.model\.|unet\.|transformer\.)*")
_ALPHA_NAMES = {"LORA": "lora_alpha", "SUPERTUNING": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
# How a LoRA is begun for which PEFT first takes something away from the model's own weights.
_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
# The parts that files of a kind have.
_FACTORS = {"LORA": {"down"}, "SUPERTUNING": {"down"}, "LOHA": {"hada_w1_b"}, "LOKR": {"lokr_w1", "lokr_w1_b"}}
# Those whose first side is the rank.
_OF_RANK = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")

# A file's patterns are matched against names: those that could take long are refused before.
_MOST_PATTERNS, _MOST_WITH_CHOICES, _MOST_CHOICES, _LONGEST = 4096, 16, 3, 256
_CHOICE = re.compile(r"[*+?{(]")
_INTRICATE = re.compile(r"\)\s*[*+?{]|\(\?|\\[0-9]")


class Alphas:
    """What PEFT's settings say of the alpha of each module; nothing, without settings.

    settings: of one adapter, as PEFT names them; peft_type: of the settings
    Raises DeltaError for patterns that cannot be used.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None, peft_type: str = "LORA"):
        settings = settings or {}
        name = _ALPHA_NAMES[peft_type]
        self._alpha = _number(settings.get(name))
        self._rank = _number(settings.get("r"))
        if peft_type == "SUPERTUNING" and self._alpha is None and self._rank is not None:
            self._alpha = 2 * self._rank
        self._by_root = settings.get("use_rslora") is True
        self._alphas = _patterns(settings, "alpha_pattern")
        self._ranks = _patterns(settings, "rank_pattern")

    @property
    def known(self) -> bool:
        """Whether the settings say an alpha."""
        return self._alpha is not None

    def of(self, module: str) -> Alpha:
        """The alpha of a module, by its name in the file. Raises DeltaError for names too long to match."""
        module = module[_PREFIX.match(module).end() :]
        rank = _matched(self._ranks, module, self._rank)
        whole = rank is not None and rank >= 1 and rank == int(rank)
        return Alpha(_matched(self._alphas, module, self._alpha), int(rank) if whole else None, self._by_root)


def alphas_of(path: Path, source: Source) -> tuple[Alphas, list[str]]:
    """The alphas of the adapter in a file, and lines for people: on settings beside it that are not its own.

    Settings count that stand in the file's metadata, or that PEFT saved with it: beside a file of the name that PEFT
    gives it, for its kind, its layers and its ranks.
    path, source: of the file
    Raises DeltaError for settings that cannot be read, and for an adapter that also changes the model it is put on.
    """
    if settings := _diffusers(source.metadata):
        return _checked(settings, "LORA"), []
    config, modules = path.with_name(CONFIG), _without_alpha(source)
    if not modules or not config.is_file():
        return Alphas(), []
    if path.name not in WEIGHT_FILES:
        return Alphas(), [_ignored(f"PEFT calls the file that it belongs to {WEIGHTS}")]
    settings = _parsed(config.read_text(encoding="utf-8", errors="replace"))
    peft_type = settings.get("peft_type")
    parts = {part for module in modules.values() for part in module}
    if not isinstance(peft_type, str) or parts.isdisjoint(_FACTORS.get(peft_type, ())):
        return Alphas(), [_ignored(f"it is of a {str(peft_type)[:_LONGEST]}")]
    alphas = _checked(settings, peft_type)
    if (why := _other_adapter(settings, alphas, source, modules)) is not None:
        return Alphas(), [_ignored(why)]
    return alphas, []


def _without_alpha(source: Source) -> dict[str, dict[str, str]]:
    """The modules that settings would scale: those of factors, without an alpha of their own; as `modules_of`."""
    factors = {part for parts in _FACTORS.values() for part in parts}
    modules, _ = modules_of(source.names)
    return {name: parts for name, parts in modules.items() if "alpha" not in parts and factors & parts.keys()}


def _checked(settings: Mapping[str, Any], peft_type: str) -> Alphas:
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_THE_MODEL):
        raise DeltaError(
            f"The LoRA was begun by '{begun}', for which PEFT changes the model's weights before it adds the LoRA: the "
            "file alone is not what was trained. Save it in PEFT with path_initial_model_for_weight_conversion, or "
            "merge it (merge_and_unload), save that model, and make a delta of it and the model."
        )
    return Alphas(settings, peft_type)


def _other_adapter(
    settings: Mapping[str, Any], alphas: Alphas, source: Source, modules: Mapping[str, Mapping[str, str]]
) -> str | None:
    """Why settings are not those of an adapter with these modules, a clause; None if nothing speaks against it."""
    layers = settings.get("target_modules")
    for module, parts in modules.items():
        plain = module[_PREFIX.match(module).end() :]
        if isinstance(layers, list) and not settings.get("target_parameters"):
            if not any(plain == layer or plain.endswith(f".{layer}") for layer in layers if isinstance(layer, str)):
                return f"it is for other layers than '{plain}'"
        rank = alphas.of(module).rank
        shown = next((source.shape(parts[part])[:1] for part in _OF_RANK if part in parts), None)
        if None not in (rank, shown) and shown != (rank,):
            return f"it has rank {rank} for '{plain}', and the file {shown[0] if shown else 'none'}"
    return None


def _ignored(why: str) -> str:
    return f"The {CONFIG} beside the file is not its own ({why}) and was left aside: the factors count as they are."


def _diffusers(metadata: Mapping[str, str]) -> dict[str, Any]:
    packed = _parsed(metadata.get(_METADATA, ""))
    for prefix in _PARTS:
        if f"{prefix}lora_alpha" in packed:
            return {name.removeprefix(prefix): value for name, value in packed.items()}
    return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"The settings beside the LoRA ({CONFIG}) are damaged. Get them again.") from error
    return content if isinstance(content, dict) else {}


def _number(value: Any) -> float | None:
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:
        return None


def _patterns(settings: Mapping[str, Any], name: str) -> list[tuple[re.Pattern, float]]:
    """Regular expressions, as PEFT completes them, and the number that each stands for."""
    patterns = settings.get(name) or {}
    if not isinstance(patterns, dict) or any(_number(value) is None for value in patterns.values()):
        raise DeltaError(f"The settings beside the LoRA ({CONFIG}) have no numbers in their {name}. Get them again.")
    if len(patterns) > _MOST_PATTERNS or sum(map(bool, map(_CHOICE.search, patterns))) > _MOST_WITH_CHOICES:
        raise DeltaError(
            f"The settings beside the LoRA ({CONFIG}) have too many patterns in their {name}. Write the names of the "
            "modules there instead."
        )
    return [(_compiled(pattern), _number(value)) for pattern, value in patterns.items()]


def _compiled(pattern: str) -> re.Pattern:
    simple = len(pattern) <= _LONGEST and len(_CHOICE.findall(pattern)) <= _MOST_CHOICES
    try:
        if not simple or _INTRICATE.search(pattern):
            raise ValueError("it is too intricate")
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise DeltaError(
            f"The pattern '{pattern[:_LONGEST]}' in the settings beside the LoRA ({CONFIG}) cannot be used ({error}). "
            "Write the names of the modules there instead."
        ) from error


def _matched(patterns: list[tuple[re.Pattern, float]], module: str, otherwise: float | None) -> float | None:
    """The number of the first pattern that fits a module's name from its beginning or a dot on."""
    if patterns and len(module) > _LONGEST:
        raise DeltaError(f"The file's module '{module[:_LONGEST]}…' has too long a name. Get the file again.")
    return next((number for pattern, number in patterns if pattern.match(module)), otherwise)
