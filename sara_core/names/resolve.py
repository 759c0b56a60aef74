"""Finding a delta's weights under the names that a model or a checkpoint file gives them."""

from collections.abc import Collection, Iterable

from ..errors import DeltaError
from ..wording import listed

# ComfyUI's models call the diffusion network `diffusion_model`, checkpoint files `model.diffusion_model`,
# and the network on its own (or a diffusion-model file) has no prefix at all.
PREFIX, CHECKPOINT_PREFIX = "diffusion_model.", "model.diffusion_model."
_PREFIXES = (PREFIX, CHECKPOINT_PREFIX, "")
# How a layer's parameters are called after its name.
WEIGHT, BIAS = ".weight", ".bias"
# Flux's original files call a norm's weight so; ComfyUI renames it when it loads one.
NORM_SCALE, NORM_WEIGHT = "_norm.scale", "_norm.weight"


def resolve(wanted: Collection[str], available: Collection[str], target: str) -> dict[str, str]:
    """Map every wanted weight name to the name that `available` has for it.

    One prefix holds for the whole delta: names as they are, else one of the known prefixes exchanged for another.
    Flux's norms are found under the name that they have in original files, too.
    Raises DeltaError, naming what is missing, when no prefix finds every weight; `target` says where was looked.
    """
    fewest_missing = list(wanted)
    for renamed in _renamings(wanted):
        renamed = {name: other if other in available else _original(other) for name, other in renamed.items()}
        missing = [name for name, other in renamed.items() if other not in available]
        if not missing:
            return renamed
        if len(missing) < len(fewest_missing):
            fewest_missing = missing
    if len(fewest_missing) == len(wanted):
        raise DeltaError(
            f"None of the delta's {len(wanted)} weights exists in {target} (for example {listed(wanted)}). "
            "It was made for another model: use the model it was trained on, or one of the same family."
        )
    raise DeltaError(
        f"{len(fewest_missing)} of the delta's {len(wanted)} weights do not exist in {target}: "
        f"{listed(fewest_missing)}. It was made for another variant of this model: use the one it was trained on."
    )


def prefix_of(names: Iterable[str]) -> str:
    """Which of the known prefixes all names have; empty where they have none, or not the same."""
    names = list(names)
    return next(prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names))


def _original(name: str) -> str:
    return name.removesuffix(NORM_WEIGHT) + NORM_SCALE if name.endswith(NORM_WEIGHT) else name


def _renamings(wanted: Collection[str]) -> Iterable[dict[str, str]]:
    yield {name: name for name in wanted}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in wanted):
            for other in _PREFIXES:
                if other != prefix:
                    yield {name: other + name.removeprefix(prefix) for name in wanted}
