"""Whether a module is alone in having a parameter.

What is written into a parameter's memory arrives at everyone who has it: a layer with tied weights, a merged MODEL
whose patches are the weights of this one, whoever kept a state dict.
"""

import sys

import torch

# Of torch's own use, for the same question; without it nothing is known to be owned.
_storage_uses = getattr(torch._C, "_storage_Use_Count", None)


def is_owned(module: torch.nn.Module, name: str, others: int = 0) -> bool:
    """Whether nobody else holds this parameter of a module, nor its memory.

    others: how many references to it the caller knows of and allows
    """
    return _storage_uses is not None and _holders(module._parameters, name) == (_ALONE[0] + others, _ALONE[1])


def _holders(parameters: dict[str, torch.nn.Parameter], name: str) -> tuple[int, int]:
    """Of the object and of its memory, with those that asking needs: the number for one alone is measured, below."""
    return sys.getrefcount(parameters[name]), _storage_uses(parameters[name].untyped_storage()._cdata)


def _of_one_alone() -> tuple[int, int]:
    return _holders({"weight": torch.nn.Parameter(torch.zeros(1), requires_grad=False)}, "weight")


_ALONE = (0, 0) if _storage_uses is None else _of_one_alone()
