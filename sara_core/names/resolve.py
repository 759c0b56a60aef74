"""Finding a delta's weights under the names that a model or a checkpoint file gives them."""

from collections.abc import Collection, Iterable, Mapping

from ..errors import DeltaError
from ..wording import listed
from .stored import CHECKPOINT_PREFIX, NORM_SCALE, NORM_WEIGHT, PREFIX, loaded_names
from .text_encoders import is_of_text_encoder

_PREFIXES = (PREFIX, CHECKPOINT_PREFIX, "")
_LONGEST_FIRST = (CHECKPOINT_PREFIX, PREFIX, "")
# How a layer's parameters are called after its name.
WEIGHT, BIAS = ".weight", ".bias"


def resolve(wanted: Collection[str], available: Collection[str], target: str) -> dict[str, str]:
    """Map every wanted weight name to the name that `available` has for it.

    One prefix holds for the whole delta: names as they are, else one of the known prefixes exchanged for another, else
    the names that `available`, if it is a file's, has before it is loaded. Those of text encoders stay as they are.
    Raises DeltaError, naming what is missing, when no prefix finds every weight, and both names where two are found in
    one place; `target` says where was looked.
    """
    fewest_missing = list(wanted)
    for renamed in _renamings(wanted, available):
        renamed = {name: other if other in available else _original(other) for name, other in renamed.items()}
        missing = [name for name, other in renamed.items() if other not in available]
        if not missing:
            _check_apart(renamed, target)
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


def common_name(name: str) -> str:
    """What all names of one weight have in common: its layer's, or its own if it is no layer's weight, without the
    model's prefix and by ComfyUI's name for norms."""
    own = name.removeprefix(next(prefix for prefix in _LONGEST_FIRST if name.startswith(prefix)))
    if own.endswith(NORM_SCALE):
        own = own.removesuffix(NORM_SCALE) + NORM_WEIGHT
    return own.removesuffix(WEIGHT)


def check_distinct(names: Iterable[str]) -> None:
    """Raise DeltaError, naming both, if two of a delta's names are of one weight: a host would take one of them."""
    seen: dict[str, str] = {}
    for name in names:
        common = common_name(name)
        if common in seen:
            raise DeltaError(
                f"The delta changes one weight twice, as '{seen[common]}' and as '{name}', and only one of the changes "
                "would arrive. Make it anew, or leave one of them out."
            )
        seen[common] = name


def _check_apart(found: Mapping[str, str], target: str) -> None:
    names: dict[str, str] = {}
    for name, place in found.items():
        if place in names:
            raise DeltaError(
                f"'{names[place]}' and '{name}' are both '{place}' in {target}, and only one of the changes would "
                "arrive. Make the delta anew, or leave one of them out."
            )
        names[place] = name


def prefix_of(names: Iterable[str]) -> str:
    """Which of the known prefixes all names but those of text encoders have; empty where they have none, or not the
    same."""
    return _prefixes(names)[0]


def exchanged(name: str, prefix: str, other: str) -> str:
    """The name with `other` in place of `prefix`, which is prefix_of its delta's names; a text encoder's stays."""
    return name if is_of_text_encoder(name) else other + name.removeprefix(prefix)


def _prefixes(names: Iterable[str]) -> list[str]:
    names = [name for name in names if not is_of_text_encoder(name)]
    return [prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names)]


def _original(name: str) -> str:
    return name.removesuffix(NORM_WEIGHT) + NORM_SCALE if name.endswith(NORM_WEIGHT) else name


def _renamings(wanted: Collection[str], available: Collection[str]) -> Iterable[dict[str, str]]:
    yield {name: name for name in wanted}
    prefixes = _prefixes(wanted)
    for prefix in prefixes:
        for other in _PREFIXES:
            if other != prefix:
                yield {name: exchanged(name, prefix, other) for name in wanted}
    stored = loaded_names(available)
    for prefix in prefixes:
        yield {name: name if is_of_text_encoder(name) else stored.get(name.removeprefix(prefix), "") for name in wanted}
