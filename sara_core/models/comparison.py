"""Two models weight by weight: what of them is the diffusion model, and how each of its weights differs.

Tensors are read one at a time, from files through the system's memory map, and differences are formed in chunks: what
is held does not grow with the models.
"""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..delta.delta import check_precision
from ..delta.entry import MAX_ELEMENTS
from ..errors import DeltaError, UnsupportedModelError
from ..files import container
from ..names.resolve import BIAS, WEIGHT, prefix_of
from ..names.stored import CHECKPOINT_PREFIX, PREFIX, loaded_names
from ..tensors.elements import added, where_float64_is
from ..wording import listed
from .base import opened_base

CHUNK = 1 << 21


@dataclass
class ModelWeights:
    """Weights of a model, read when they are asked for.

    label: what to call it in messages
    diffusion: names of the diffusion model's weights, as a delta calls them but without its prefix
    prefix: what a delta of this model puts before them
    tensor: such a name → weight
    others: the file's other tensors (text encoder, VAE …), name → how to read it
    family: "SD1.5" …, if the names tell
    precisions: of weights that are stored quantised, by such names: what people call it
    """

    label: str
    diffusion: list[str]
    prefix: str
    tensor: Callable[[str], torch.Tensor]
    others: Mapping[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    family: str | None = None
    precisions: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def model_weights(source: str | os.PathLike | Mapping[str, torch.Tensor], label: str) -> Iterator[ModelWeights]:
    """The weights of a model that base.opened_base opens, or of a mapping from name to tensor, which `label` names.

    Raises DeltaError for a file that is missing, damaged or of another kind.
    """
    if isinstance(source, Mapping):
        yield _of_mapping(source, label)
        return
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(opened_base(source))
        others = {}
        if Path(source).is_file():
            file = stack.enter_context(container.opened(source))
            outside = set(file.keys()) - set(loaded_names(file.keys()).values())
            others = {name: functools.partial(file.get_tensor, name) for name in sorted(outside)}
        yield ModelWeights(base.label, list(base.shapes), PREFIX, base.weight, others, base.family, base.precisions)


def _of_mapping(tensors: Mapping[str, torch.Tensor], label: str) -> ModelWeights:
    """A checkpoint in memory, or a model's own state dict: then a delta has the model's own names."""
    inside = [name for name in tensors if name.startswith(CHECKPOINT_PREFIX)]
    others = {name: functools.partial(tensors.__getitem__, name) for name in tensors.keys() - inside} if inside else {}
    names = inside or list(tensors)
    prefix = prefix_of(names)
    own = {name.removeprefix(prefix): name for name in names}
    return ModelWeights(
        label, list(own), prefix.removeprefix("model."), lambda name: tensors[own[name]], others,
        precisions=getattr(tensors, "precisions", {}),
    )  # fmt: skip


@dataclass
class Pair:
    """One weight of both models. name: as a delta calls it; bare: without the prefix"""

    name: str
    bare: str
    shape: tuple[int, ...] = ()


@dataclass
class Chunk:
    """Some consecutive elements of one weight.

    start: flat row-major position of the first; base, tuned: 1-D, in their own dtypes; change: tuned − base, float32
    """

    pair: Pair
    start: int
    base: torch.Tensor
    tuned: torch.Tensor
    change: torch.Tensor

    @property
    def name(self) -> str:
        """The weight's, as a delta calls it."""
        return self.pair.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole weight."""
        return self.pair.shape


class Comparison:
    """The diffusion models in `base` and `tuned`, checked to have the same weights.

    pairs: of floating-point tensors, by name
    rounded: elements that differed in the last reading of `chunks` only because one model is stored with fewer bits
    Raises DeltaError, naming both models, where names or shapes differ; UnsupportedModelError for weights that only one
    of them has quantised, or in another way.
    """

    def __init__(self, base: ModelWeights, tuned: ModelWeights):
        self.base, self.tuned = base, tuned
        self.rounded = 0
        self._check_names()
        prefix = max(base.prefix, tuned.prefix, key=len)
        pairs = (Pair(prefix + bare, bare) for bare in sorted({*base.diffusion} & {*tuned.diffusion}))
        self.pairs = [pair for pair in pairs if self._check(pair)]

    def _check_names(self) -> None:
        of_base, of_tuned = set(self.base.diffusion), set(self.tuned.diffusion)
        if not of_base & of_tuned:
            raise DeltaError(
                f"'{self.base.label}' and '{self.tuned.label}' have no weight of a diffusion model in common. Choose "
                "the model that the other one was tuned from."
            )
        for mine, other, model in ((of_base, of_tuned, self.tuned), (of_tuned, of_base, self.base)):
            missing = {name for name in mine - other if name.endswith((WEIGHT, BIAS))}
            if missing:
                raise DeltaError(
                    f"'{model.label}' lacks {len(missing)} weights of the other model ({listed(missing)}): it is "
                    "another kind of model. Choose the model that the other one was tuned from."
                )

    def remarks(self) -> list[str]:
        """Sentences on what only one of the models has beside its layers (statistics, counters …)."""
        said = []
        for one, other in ((self.base, self.tuned), (self.tuned, self.base)):
            if alone := set(one.diffusion) - set(other.diffusion):
                said.append(f"Not compared, because only '{one.label}' has them: {listed(sorted(alone))}.")
        if stored := sorted(set(self.base.precisions.values())):
            said.append(
                f"Both models are quantised ({', '.join(stored)}): the delta has what their rounding left of the "
                "difference, and what it added."
            )
        return said

    def _check(self, pair: Pair) -> bool:
        self._check_precisions(pair)
        base, tuned = self.base.tensor(pair.bare), self.tuned.tensor(pair.bare)
        if base.shape != tuned.shape:
            raise DeltaError(
                f"'{pair.name}' is {list(base.shape)} in '{self.base.label}' and {list(tuned.shape)} in "
                f"'{self.tuned.label}'. Choose the model that the other one was tuned from."
            )
        if not (base.is_floating_point() or tuned.is_floating_point()):
            if not torch.equal(base, tuned):
                raise UnsupportedModelError(
                    f"'{pair.name}' is stored as whole numbers ({base.dtype}), as in a quantised model, and differs. "
                    "Use both models in fp16, bf16 or fp32."
                )
            return False
        for tensor in (base, tuned):
            check_precision(pair.name, tensor)
        if base.numel() > MAX_ELEMENTS:
            raise UnsupportedModelError(f"'{pair.name}' has more than 2^31 - 1 elements, which a delta cannot number.")
        pair.shape = tuple(base.shape)
        return base.numel() > 0

    def _check_precisions(self, pair: Pair) -> None:
        """Of two that were rounded differently, most of what differs is rounding."""
        of_base, of_tuned = (model.precisions.get(pair.bare) for model in (self.base, self.tuned))
        if of_base != of_tuned:
            model, precision = (self.base, of_base) if of_base else (self.tuned, of_tuned)
            raise UnsupportedModelError(
                f"'{pair.name}' is stored as {precision} in '{model.label}', and otherwise in the other model: nearly "
                "all of it would differ by rounding alone. Use both models in fp16, bf16 or fp32, or both in the same "
                "quantisation."
            )

    @property
    def elements(self) -> int:
        """Number of elements of all pairs."""
        return sum(torch.Size(pair.shape).numel() for pair in self.pairs)

    def both(self, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        """The base's and the tuned weight, 1-D in row-major order."""
        base = self.base.tensor(pair.bare)
        return base.reshape(-1), self.tuned.tensor(pair.bare).to(base.device).reshape(-1)

    def chunks(self) -> Iterator[Chunk]:
        """Every element of every pair. Raises DeltaError, by name, for weights that are not finite numbers."""
        self.rounded = 0
        for pair in self.pairs:
            base, tuned = self.both(pair)
            for start in range(0, len(base), CHUNK):
                one, other = base[start : start + CHUNK], tuned[start : start + CHUNK]
                change = _subtracted(one, other)
                if not torch.isfinite(where_float64_is(change).sum(dtype=torch.float64)):
                    raise DeltaError(
                        f"'{pair.name}' has values that are NaN or infinite in '{self.base.label}' or "
                        f"'{self.tuned.label}'. That model's file is damaged, or was merged wrongly: use another one."
                    )
                if one.dtype != other.dtype:
                    same = rounded_alike(one, other)
                    self.rounded += int(torch.count_nonzero(change[same]))
                    change = change.masked_fill(same, 0)
                yield Chunk(pair, start, one, other, change)

    def other_parts(self) -> dict[str, tuple[int, int]]:
        """First word of the names outside the diffusion model (text encoder, VAE …) → how many of the tensors that
        both models have differ, and how many there are."""
        differing, total = Counter(), Counter()
        for name in sorted(self.base.others.keys() & self.tuned.others.keys()):
            part = name.split(".")[0]
            total[part] += 1
            differing[part] += not _same_bytes(self.base.others[name](), self.tuned.others[name]())
        return {part: (differing[part], total[part]) for part in total}


def rounded_alike(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where two tensors of different floating dtypes can be the same numbers, rounded to each of them: bool [n]."""
    fine, coarse = sorted((one, other), key=lambda tensor: torch.finfo(tensor.dtype).eps)
    alike = fine.to(coarse.dtype) == coarse
    if torch.promote_types(one.dtype, other.dtype) != fine.dtype:
        # float16 and bfloat16: neither holds the other's numbers, so one number may have been rounded to both.
        alike |= (fine.float() - coarse).abs() <= (_step(fine) + _step(coarse)) / 2
    return alike


def _step(tensor: torch.Tensor) -> torch.Tensor:
    """How far the numbers of its dtype lie apart at each element, float32."""
    precision = torch.finfo(tensor.dtype)
    size = tensor.float().abs().clamp_min(precision.smallest_normal)
    return torch.ldexp(torch.full_like(size, precision.eps), torch.frexp(size).exponent - 1)


def _subtracted(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """tuned − base, formed in the wider of their dtypes and at least float32, then rounded to float32."""
    dtype = torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)
    return (tuned.to(dtype) - base.to(dtype)).float()


def _same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    first, second = (tensor.reshape(-1).view(torch.uint8) for tensor in (first, second.to(first.device)))
    return torch.equal(first, second)


def exact_change(base: torch.Tensor, tuned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Δ, float32 [n], and where round(float32(base) + Δ) is `tuned` exactly (in the dtype of `base`), bool [n].

    base, tuned: [n] of any floating dtypes. Where they are the same number, rounded to one and to the other, Δ is 0 and
        what there is to reach.
    """
    change = _subtracted(base, tuned)
    if base.dtype == tuned.dtype:
        return change, added(base, change, 1.0) == tuned
    same = rounded_alike(base, tuned)
    change = change.masked_fill(same, 0)
    return change, same | (added(base, change, 1.0) == tuned.to(base.dtype))
