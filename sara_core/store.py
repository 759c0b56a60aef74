"""The trained vector Δ, its gradient, and the way its values reach the live weights.

Δ starts at 0 and is what is trained, saved and scaled; nothing is ever recovered by subtraction. On the support a
live weight is round(base + Δ), one rounding to the weight's dtype, from base values that are kept untouched.
"""

import hashlib

import torch

from .delta import SparseDelta, SparseEntry
from .elements import added, gather, scatter_
from .errors import DeltaError, TrainingError
from .support import Support


class Store:
    """Δ of all segments as one fp32 Parameter.

    values: fp32 [nnz], the Parameter an optimizer sees; its .grad is written by the layers' backward
    base: per segment the base values in the weight's own dtype, or None where Δ is added to a copy of the weight
    """

    def __init__(self, support: Support, device=None):
        self.support = support
        self.values = torch.nn.Parameter(torch.zeros(support.nnz, dtype=torch.float32, device=device))
        self.base: list[torch.Tensor | None] = [None] * len(support)
        self.locations: list = [None] * len(support)
        self.reached = [False] * len(support)
        self._digests = [""] * len(support)

    def bind(self, number: int, location, in_place: bool) -> None:
        """Tie segment `number` to the weight that `location.weight` is, now and after it was moved or replaced.

        in_place: `write` brings that weight up to date; otherwise whoever computes with it adds Δ to a copy
        """
        segment = self.support.segments[number] = self.support.segments[number].to(location.weight.device)
        base = gather(location.weight, segment.flat())
        self._digests[number] = _digest(segment, base)
        if in_place:
            self.locations[number], self.base[number] = location, base

    @property
    def base_fingerprint(self) -> str:
        """Identity of the base under this support: hex digest over names, shapes, positions and base values."""
        return hashlib.blake2b("".join(self._digests).encode(), digest_size=16).hexdigest()

    def accumulate(self, number: int, gradient: torch.Tensor) -> None:
        """Add one layer's gradient, fp32 [len(segment)], to the gradient of the vector."""
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        self.values.grad[self.support.segments[number].span].add_(gradient)
        self.reached[number] = True

    def unreached(self) -> list[str]:
        """Names of the segments that no backward has reached yet."""
        return [s.name for s, reached in zip(self.support, self.reached) if not reached]

    def changed(self, number: int, base_values: torch.Tensor) -> torch.Tensor:
        """round(base + Δ) of one segment, in the dtype of `base_values` [len(segment)]."""
        return added(base_values, self.values.detach()[self.support.segments[number].span], 1.0)

    def check_unconverted(self) -> None:
        """Raise TrainingError if the model was converted or moved since its weights were bound."""
        for segment, location, base in zip(self.support, self.locations, self.base):
            if location is not None and (location.weight.dtype, location.weight.device) != (base.dtype, base.device):
                raise TrainingError(
                    f"'{segment.name}' was {base.dtype} on {base.device} when training began and is now "
                    f"{location.weight.dtype} on {location.weight.device}: convert and move a model before SaRA is "
                    "constructed."
                )

    @torch.no_grad()
    def write(self) -> None:
        """Bring the live weights that are written in place up to date with Δ."""
        self._scatter(lambda number: self.changed(number, self.base[number]))

    @torch.no_grad()
    def restore(self) -> None:
        """Give the live weights back every bit they had."""
        self._scatter(lambda number: self.base[number])

    def _scatter(self, values_of):
        for number, (segment, location) in enumerate(zip(self.support, self.locations)):
            if location is not None:
                scatter_(location.weight, segment.flat(), values_of(number).to(location.weight.dtype))

    def delta(self, metadata: dict[str, str] | None = None) -> SparseDelta:
        """The trained change, on the CPU; entries are copies and stay as they are when training goes on."""
        values = self.values.detach().to("cpu")
        entries = {}
        for segment in self.support:
            indices = segment.flat().to("cpu", torch.int32)
            entries[segment.name] = SparseEntry(indices, values[segment.span].clone(), segment.shape)
        return SparseDelta(entries, metadata)

    def state(self) -> dict:
        """What an exact continuation needs beside the optimizer's state: Δ, and what identifies support and base."""
        return {
            "values": self.values.detach().clone(),
            "names": [segment.name for segment in self.support],
            "crow": [segment.crow for segment in self.support],
            "col": [segment.col for segment in self.support],
            "base_fingerprint": self.base_fingerprint,
        }

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Take Δ from `state()` of a store over the same support and base; raises DeltaError otherwise."""
        if state["names"] != [segment.name for segment in self.support]:
            raise DeltaError("This state trains other weights of the model: use the same selection and patterns.")
        if state["base_fingerprint"] != self.base_fingerprint:
            raise DeltaError(
                "This state was saved over another base model or with other trained elements: "
                "load the base it was trained on, and use the same selection."
            )
        self.values.copy_(state["values"])


def _digest(segment, base: torch.Tensor) -> str:
    digest = hashlib.blake2b(f"{segment.name} {tuple(segment.shape)}".encode(), digest_size=16)
    for tensor in (segment.crow, segment.col, base.float()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
