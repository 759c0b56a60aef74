"""Deltas on models whose weights the host patches: it is given what is to be added, and adds it when a model is about
to compute, from copies of its own; on top of the LoRAs, and in one rounding with them."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch

from sara_core.delta.delta import check_range
from sara_core.delta.entry import SparseEntry
from sara_core.errors import UnsupportedModelError
from sara_core.tensors.elements import gather
from sara_core.wording import listed

from ...fitting import is_of_unet
from ...in_place import Part, Place, same, summed

# What a host calls the diffusion model, behind which are the names of its parameters; a checkpoint has this before it.
KMODEL = "model."
# In a module that the host has put around another one, the other one.
_WRAPPED = "wrapped"
_PARTS = {"unet": is_of_unet, "clip": lambda name: not is_of_unet(name)}


class Patching(Protocol):
    """What each of these WebUIs does in a way of its own. name: what its people call it"""

    name: str

    def patches(self, patcher: Any, wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, Any]:
        """What `add` takes, for a patcher that has none of ours. wanted: by the names of its parameters"""

    def add(self, part: Any, called: str, patches: Mapping[str, Any]) -> Collection[str]:
        """Let a model have patches, a diffusion model or a CLIP; those that it has taken. called: no other has this"""

    def base(self, patcher: Any) -> Mapping[str, torch.Tensor]:
        """The parameters that are patched, as they were before."""

    def prepare(self, encoders: torch.nn.Module) -> None:
        """Have the text encoders' weights as the host has them when it encodes."""

    def problem(self) -> str:
        """Why nothing can be changed in what is loaded, for people; empty where it can."""

    def unload_all(self) -> None:
        """No model computes any more; the host loads it anew when it is to."""

    def restore(self, patcher: Any) -> None:
        """Every parameter as it was before any patch, now. For a model that is unloaded."""


class Patched:
    """What is wanted of the loaded model. Calls come one at a time, in the host's own threads.

    patching: the host's; model: asks for the host's loaded model, None while none is loaded

    Nothing here keeps a model in memory.
    """

    def __init__(self, patching: Patching, model: Callable[[], Any]):
        self._patching, self._model = patching, model
        self._wanted: dict[str, Sequence[Part]] = {}
        # Our patched clone → the host's, with its LoRAs alone; and what was wanted of it.
        self._theirs: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        # Forge patches anew only where the names of what it is given are others.
        self._numbers = itertools.count()
        self._put_on: WeakKeyDictionary[Any, Mapping[str, Sequence[Part]]] = WeakKeyDictionary()

    def bring(self, places: Mapping[str, Place], wanted: Mapping[str, Sequence[Part]]) -> None:
        """Bring the weights to what is wanted, and all others that were changed back to their own bits.

        places: the model's parameters by their names, as they are without a patch; wanted: see in_place.InPlace.bring
        Raises DeltaError if an element gets too large for its dtype; then nothing is on any weight.
        """
        try:
            for name, parts in wanted.items():
                entry, strength = summed(parts)
                base = gather(places[name].weight, entry.indices.to(places[name].weight.device))
                check_range(name, base, entry.values, strength)
            self._wanted = dict(wanted)
            self.put()
        except BaseException:
            self.lift_all()
            raise

    def lift_all(self) -> None:
        """Nothing is wanted any more; the weights have their own bits when the model computes again."""
        self._wanted = {}
        self.put()

    def names(self) -> list[str]:
        """The weights of which something is wanted."""
        return list(self._wanted)

    def put(self) -> None:
        """See to it that the host computes with what is wanted, whatever it has put in the place of ours since."""
        if (model := self._model()) is None:
            return
        chosen = model.forge_objects_after_applying_lora
        for part, is_of_part in _PARTS.items():
            now = getattr(chosen, part)
            wanted = {name: parts for name, parts in self._wanted.items() if is_of_part(name)}
            if not _alike(self._put_on.get(now, {}) if now is not None else {}, wanted):
                theirs = self._theirs.get(now, now)
                new = self._clone(theirs, wanted) if wanted else theirs
                for objects in (chosen, model.forge_objects):
                    setattr(objects, part, new)

    def restore(self) -> None:
        """Every weight as its checkpoint has it, now and not only when the model computes again."""
        if (model := self._model()) is not None:
            for part in _PARTS:
                if (known := getattr(model.forge_objects_original, part)) is not None:
                    self._patching.restore(patcher_of(known))

    def _clone(self, theirs: Any, wanted: Mapping[str, Sequence[Part]]) -> Any:
        ours = theirs.clone()
        own = parameters(patcher_of(ours).model)
        changes = {own[name.removeprefix(KMODEL)].path: summed(parts) for name, parts in wanted.items()}
        patches = self._patching.patches(patcher_of(ours), changes)
        called = f"sara:{next(self._numbers)}"
        taken = self._patching.add(ours, called, patches)
        if missed := patches.keys() - set(taken):
            raise UnsupportedModelError(f"The WebUI did not take the change of {listed(missed)}. Update the extension.")
        self._theirs[ours], self._put_on[ours] = theirs, wanted
        return ours


def patcher_of(part: Any) -> Any:
    """The ModelPatcher of a diffusion model, which is one, or of a CLIP, which has one."""
    return getattr(part, "patcher", part)


class Parameter(NamedTuple):
    """Of a model of the host's. path: by which the host patches it"""

    path: str
    tensor: torch.Tensor


def parameters(model: torch.nn.Module) -> dict[str, Parameter]:
    """A model's parameters by the names that they had before the host put something around a module: around a text
    encoder's embedding, which it computes with, stands another one that only shows the weight."""
    found = {}
    for path, module in model.named_modules():  # the inner one after the one around it
        for name, tensor in module._parameters.items():
            if tensor is not None:
                inner = f"{path}.{name}" if path else name
                found[".".join(word for word in inner.split(".") if word != _WRAPPED)] = Parameter(inner, tensor)
    return found


def _alike(wanted: Mapping[str, Sequence[Part]], other: Mapping[str, Sequence[Part]]) -> bool:
    return wanted.keys() == other.keys() and all(same(parts, other[name]) for name, parts in wanted.items())
