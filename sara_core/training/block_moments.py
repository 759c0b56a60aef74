"""Optimizers of torchao, which keep their moments in blocks of a few bits, over a vector of any length.

They do so only where the number of elements is a multiple of the block's length, and otherwise keep all moments in
fp32, without a word. A trained vector has any number of elements. So it is handed to them in two parts, views of the
one Parameter that everyone else sees: as many whole blocks as there are, and an end that is shorter than a block, whose
moments stay in fp32. Their tensor classes are not known to files either: a state consists of plain tensors.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import TrainingError
from ..foreign_text import NAME, plain

# Of the names of what is kept for the end.
END = "_end"
_PACKAGE = "torchao.optim"
# A vector of fewer elements they keep in fp32 as a whole, as bitsandbytes does.
SMALLEST = 4096
# What their tensors hold beside the moments: the same for all, and theirs.
_CONSTANT = "qmap"
_SIGNED = "exp_avg"


def keeps_blocks(kind: type) -> bool:
    """Whether an optimizer's class is one of these."""
    return kind.__module__.startswith(_PACKAGE) and hasattr(kind, "_new_buffer")


@functools.cache
def over_any_length(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class, or one made of it that takes a vector of any length; a class that keeps no blocks is left as it is."""
    if not keeps_blocks(kind):
        return kind
    return type(kind.__name__, (_InTwoParts, kind), {"__module__": __name__})


class _InTwoParts:
    """Before a class of torchao's: everyone else sees one vector, fp32 [n], and its state as plain tensors."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        vectors = [group["params"] for group in self.param_groups]
        parts = {vector: self._parts(vector) for group in vectors for vector in group}
        for group, whole in zip(self.param_groups, vectors):
            group["params"] = [part for vector in whole for part in parts[vector]]
        self._hand_out(parts)
        try:
            super().step()
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            if not _is_of_the_compiler(error):
                raise
            raise TrainingError(
                f"The 8-bit optimizer of torchao compiles its step, which failed ({plain(error, NAME)}). Choose AdamW, "
                "or install bitsandbytes, which needs no compiler."
            ) from error
        finally:
            for group, whole in zip(self.param_groups, vectors):
                group["params"] = whole
            self._take_back(parts)
        return loss

    def _parts(self, vector: torch.nn.Parameter) -> list[torch.nn.Parameter]:
        border = self._border(len(vector))
        if border in (0, len(vector)):
            return [vector]
        parts = [torch.nn.Parameter(part) for part in vector.detach().tensor_split([border])]
        if vector.grad is not None:
            for part, gradient in zip(parts, vector.grad.tensor_split([border])):
                part.grad = gradient
        return parts

    def _border(self, length: int) -> int:
        """Where the whole blocks end."""
        return 0 if length < SMALLEST else length - length % self.block_size

    def _hand_out(self, parts: Mapping) -> None:
        for vector, (first, *end) in parts.items():
            if end and (kept := self.state.pop(vector, None)):
                self.state[first] = {name: value for name, value in kept.items() if not name.endswith(END)}
                own = {name.removesuffix(END): value for name, value in kept.items() if name.endswith(END)}
                self.state[end[0]] = {"step": kept["step"].clone(), **own}

    def _take_back(self, parts: Mapping) -> None:
        for vector, (first, *end) in parts.items():
            if end:
                kept, of_end = self.state.pop(first, {}), self.state.pop(end[0], {})
                if kept and of_end:  # one without the other is of a step that failed
                    own = {name + END: value for name, value in of_end.items() if name != "step"}
                    self.state[vector] = {**kept, **own}

    def state_dict(self) -> dict:
        state = super().state_dict()
        kept = {
            number: {name: _in_plain_tensors(value) for name, value in of_vector.items()}
            for number, of_vector in state["state"].items()
        }
        return {**state, "state": kept}

    def load_state_dict(self, state_dict: Mapping) -> None:
        vectors = [vector for group in self.param_groups for vector in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        kept = {
            number: {name: self._in_blocks(name, value, vector) for name, value in state_dict["state"][number].items()}
            for number, vector in zip(numbers, vectors)
            if number in state_dict["state"]
        }
        super().load_state_dict({**state_dict, "state": kept})

    def as_written_now(self, state: Any, elements: int) -> Any:
        """A state of a vector of so many elements whose moments are all in fp32, as they were once saved, in today's
        form; any other as it is."""
        border = self._border(elements)
        try:
            kept = state["state"][0]
            moments = {name: value for name, value in kept.items() if name != "step"}
        except (KeyError, TypeError, AttributeError):
            return state
        plain_moments = all(
            type(value) is torch.Tensor and value.dtype == torch.float32 and value.shape == (elements,)
            for value in moments.values()
        )
        if border == 0 or not moments or not plain_moments:
            return state
        now = {"step": kept["step"]} if "step" in kept else {}
        for name, value in moments.items():
            blocks = self._new_buffer(value[:border], name == _SIGNED)
            blocks.copy_(value[:border])
            now[name] = _in_plain_tensors(blocks)
            if border < elements:
                now[name + END] = value[border:].clone()
        return {**state, "state": {0: now}}

    def _in_blocks(self, name: str, value, vector: torch.Tensor):
        if not isinstance(value, Mapping):
            return value
        blocks = self._new_buffer(vector.detach()[: self._border(len(vector))], name == _SIGNED)
        for part, tensor in value.items():
            own = getattr(blocks, part)
            own.copy_(tensor.view(own.dtype))
        return blocks


def _in_plain_tensors(value):
    """A tensor in blocks as a table of the tensors that it consists of; anything else as it is."""
    if not isinstance(value, torch.Tensor) or not hasattr(value, "__tensor_flatten__"):
        return value
    names, _ = value.__tensor_flatten__()
    parts = {name: getattr(value, name) for name in names if name != _CONSTANT}
    # Floats of 8 bits have no place in the files of a training; their bytes have.
    return {name: part.view(torch.uint8) if part.element_size() == 1 else part for name, part in parts.items()}


def _is_of_the_compiler(error: Exception) -> bool:
    return isinstance(error, torch._dynamo.exc.TorchDynamoException) or "torch.compile" in str(error)
