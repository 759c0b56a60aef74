"""The modules of an adapter file and their parts, by the names of its tensors."""

import re
from collections.abc import Collection, Iterable

from ...errors import DeltaError
from ...names.resolve import NORM_SCALE
from ..peft import PREFIX
from .kinds import are_of_a_known_kind
from .parts import PARTS

_BY_LENGTH = sorted(PARTS, key=len, reverse=True)
# What PEFT trains as a whole beside the factors (modules_to_save, bias), under its own names.
_WHOLE = re.compile(re.escape(PREFIX) + r"(?P<module>.+?)(?:\.base_layer)?\.(?P<part>weight|bias)")
# LyCORIS's IA³ has nothing but this beside a module's `weight`, which other files have for other things.
_ON_INPUT = ".on_input"
_OF_IA3 = {"weight": "factors", "on_input": "on_input"}

_GLORA = (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight")
# A model may have parameters called so too.
_OF_MODELS = {".alpha", ".rescale", ".up.weight", ".down.weight", ".bm.weight", *_GLORA}
_OF_ADAPTERS = (*PARTS.keys() - _OF_MODELS, _ON_INPUT, "_lora1.up.weight", "_lora2.up.weight")


def are_of_an_adapter(names: Collection[str]) -> bool:
    """Whether tensors of these names are an adapter's, not a model's."""
    return (
        any(name.endswith(_OF_ADAPTERS) or name.startswith(PREFIX) for name in names)
        or all(any(name.endswith(ending) for name in names) for ending in _GLORA)
        or are_of_a_known_kind(names)
    )


def modules_of(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module → part (of PARTS) → tensor name; and the names of the tensors that are no part that is known.

    Raises DeltaError for two tensors of the same part.
    """
    names = list(names)
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    ia3 = {name.removesuffix(_ON_INPUT) for name in names if name.endswith(_ON_INPUT)}
    for name in names:
        ending = next((ending for ending in _BY_LENGTH if name.endswith(ending)), None)
        stem, _, last = name.rpartition(".")
        if stem in ia3 and last in _OF_IA3:
            module, part = stem, _OF_IA3[last]
        elif ending is not None:
            module, part = name.removesuffix(ending), PARTS[ending]
        elif name.endswith(NORM_SCALE):
            module, part = name.removesuffix(".scale"), "set"
        elif whole := _WHOLE.fullmatch(name):
            module, part = PREFIX + whole["module"], "set" if whole["part"] == "weight" else "set_bias"
        else:
            unknown.append(name)
            continue
        if (other := modules.setdefault(module, {}).setdefault(part, name)) != name:
            raise DeltaError(
                f"The file has two tensors for one thing, '{other}' and '{name}'. Get it again from where it came from."
            )
    return modules, unknown
