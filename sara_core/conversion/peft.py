"""What PEFT calls its files, what it puts before the names of a model's layers, and into the names of its tensors."""

import re
from collections.abc import Iterable

from ..errors import DeltaError
from ..wording import listed

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The weights of a folder's adapter; older versions had torch.save write them.
WEIGHT_FILES = (WEIGHTS, "adapter_model.bin")
PREFIX = "base_model.model."

# In memory an adapter's own name stands behind that of its parameter, and files that were not saved by PEFT itself keep
# it: `x.lora_A.my_style.weight`, `x.hada_w1_a.my_style`, and for layers trained as a whole
# `x.modules_to_save.my_style.weight`.
_NAMED = re.compile(
    r"(?P<before>.*\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+|ia3_l|ln_tuning_layers"
    r"|shira_weight|shira_indices|supertuning_\w+))\.(?!(?:weight|bias)$)(?P<adapter>[^.]+)"
    r"(?P<after>(?:\.(?:weight|bias))?)"
)
_SAVED_WHOLE = re.compile(r"(?P<before>.*)\.modules_to_save\.(?P<adapter>[^.]+)(?P<after>\..+)")


def plain_name(name: str) -> tuple[str, str | None]:
    """A tensor's name as PEFT's own files have it, and the adapter's name that stood in it, if one did."""
    found = _NAMED.fullmatch(name) or _SAVED_WHOLE.fullmatch(name)
    return (name, None) if found is None else (found["before"] + found["after"], found["adapter"])


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Name without that of an adapter → name in the file. Raises DeltaError for a file with several adapters."""
    plain: dict[str, str] = {}
    adapters = set()
    for name in names:
        without, adapter = plain_name(name)
        if adapter is not None:
            adapters.add(adapter)
        if len(adapters) > 1:
            continue
        if (other := plain.setdefault(without, name)) != name:
            raise DeltaError(
                f"The file has two tensors for one thing, '{other}' and '{name}'. Get it again from where it came from."
            )
    if len(adapters) > 1:
        raise DeltaError(
            f"The file holds several adapters ({listed(adapters)}), and nothing says which of them is meant. Save the "
            "one to convert in a file of its own."
        )
    return plain
