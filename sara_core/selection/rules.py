"""Which elements are trained: the smallest weights of a model, or, for comparison, others.

Equations 1-3 of the SaRA paper (arXiv 2409.06633): the support is M = {|p| < θ} with one threshold θ for the whole
model. For models whose θ nobody has published, the same smallest elements can be asked for by count or by density.
The paper compares them with the largest and with random ones; the largest |w · ∂L/∂w| are those that SNIP (Lee et al.,
arXiv 1810.02340) keeps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ..delta.entry import MAX_ELEMENTS
from ..errors import SelectionError
from ..tensors.elements import gather

RULES = ("smallest", "largest", "random", "gradient")
# Elements examined at a time: bounds the temporaries of a selection to tens of MB whatever the model's size.
CHUNK = 1 << 22
# The n smallest are found exactly among elements below a bound guessed from a sample; a generous guess avoids retries.
SAMPLE = 1 << 20
MARGIN = 1.15

# Groups of weights, by name, with the number of elements that each group gives.
Shares = list[tuple[list[str], int]]


@dataclass(frozen=True)
class Selection:
    """The chosen elements of each weight.

    indices: name → int32 [n], sorted flat positions in logical (row-major) order; weights without any are absent
    count: number of chosen elements
    theta: θ; for a count or density the largest selected |w|. None where no threshold divides the chosen from the
        others: for every rule but "smallest", and per layer
    candidates: number of elements the choice was made from
    rule: what was asked for, for the file's metadata, e.g. {"rule": "smallest", "count": 5000000}
    """

    indices: dict[str, torch.Tensor]
    count: int
    theta: float | None
    candidates: int
    rule: dict

    def without_indices(self) -> "Selection":
        """What to keep for a report while a run goes on: the support holds the positions in its own form."""
        return replace(self, indices={})

    @property
    def density(self) -> float:
        return self.count / self.candidates


def select(
    weights: Mapping[str, torch.Tensor],
    *,
    threshold: float | None = None,
    count: int | None = None,
    density: float | None = None,
    rule: str = "smallest",
    per_layer: bool = False,
    seed: int = 0,
    by_gradient: Callable[[Mapping[str, torch.Tensor], Shares], dict[str, torch.Tensor]] | None = None,
) -> Selection:
    """Choose elements of `weights` by one of RULES, and how many by exactly one of threshold, count and density.

    weights: name → floating-point tensor of any shape and memory format; read, never copied as a whole
    threshold: θ; every element with |w| < θ (rule "smallest" only)
    count: n elements; among equals the first in the order of `weights`
    density: as `count`, with n = density × number of elements, 0 < density < 1
    rule: "smallest" or "largest" |w|; "random", the same elements for the same seed on every device; "gradient", the
        largest |w · ∂L/∂w|
    per_layer: each weight gives its own share: density × its elements, at least one (density only)
    seed: of the random choice
    by_gradient: finds the elements for rule "gradient" (gradient.GradientScores.largest)

    Raises SelectionError when what is asked for is contradictory, or selects nothing or everything.
    """
    given = {"threshold": threshold, "count": count, "density": density}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise SelectionError(f"Give exactly one of threshold, count and density (got {sorted(given) or 'none'}).")
    (amount, value), = given.items()
    _check_rule(rule, amount, per_layer, by_gradient)
    total = sum(weight.numel() for weight in weights.values())
    if total == 0:
        raise SelectionError(
            "There is no weight to choose from: the include and exclude patterns leave no Linear or Conv layer."
        )
    for name, weight in weights.items():
        if weight.numel() > MAX_ELEMENTS:
            raise SelectionError(f"'{name}' has more than 2^31 - 1 elements: leave it out with an exclude pattern.")
    if not math.isfinite(value) or value <= 0:
        raise SelectionError(f"{amount} must be a number above 0 (got {value}).")

    record = {"rule": rule, amount: value}
    theta = None
    if amount == "threshold":
        indices, theta = _below(weights, threshold), float(threshold)
    else:
        shares = _shares(weights, amount, value, per_layer)
        if rule == "random":
            indices = _random(weights, shares, seed)
            record["seed"] = seed
        elif rule == "gradient":
            indices = by_gradient(weights, shares)
        else:
            indices, bound = _extreme(weights, shares, largest=rule == "largest")
            theta = bound if rule == "smallest" and not per_layer else None
    if per_layer:
        record["per_layer"] = True
    indices = {name: indices[name] for name in weights if indices[name].numel()}
    return Selection(indices, sum(index.numel() for index in indices.values()), theta, total, record)


def _check_rule(rule, amount, per_layer, by_gradient) -> None:
    if rule not in RULES:
        raise SelectionError(f"There is no selection rule '{rule}'. Choose one of: {', '.join(RULES)}.")
    if amount == "threshold" and rule != "smallest":
        raise SelectionError(
            f"A threshold divides small weights from large ones, which the rule '{rule}' does not do: "
            "say by density or count how many weights it is to choose."
        )
    if per_layer and amount != "density":
        raise SelectionError(f"Per layer only a density has a meaning: give one in place of the {amount}.")
    if (rule == "gradient") != (by_gradient is not None):
        raise SelectionError("The rule 'gradient', and no other, needs a loss whose gradient it can look at.")


def _below(weights, threshold) -> dict[str, torch.Tensor]:
    magnitudes = _Magnitudes(weights)
    indices = {name: magnitudes.positions(weight, lambda a: a < threshold) for name, weight in weights.items()}
    chosen = sum(index.numel() for index in indices.values())
    if chosen == 0:
        smallest = min(magnitudes.smallest(weight) for weight in weights.values())
        raise SelectionError(
            f"No weight is smaller than the threshold {threshold}: the smallest is {smallest:.3g}. "
            "Raise the threshold, or choose by density."
        )
    if chosen == sum(weight.numel() for weight in weights.values()):
        raise SelectionError(
            f"Every weight is smaller than the threshold {threshold}: that is full fine-tuning. "
            "Lower the threshold, or choose by density."
        )
    return indices


def _shares(weights, amount, value, per_layer) -> Shares:
    """Which weights give how many elements together."""
    total = sum(weight.numel() for weight in weights.values())
    if per_layer:
        shares = [([name], max(1, round(value * weight.numel()))) for name, weight in weights.items()]
    else:
        shares = [(list(weights), int(value) if amount == "count" else round(value * total))]
    n = sum(share for _, share in shares)
    if n < 1:
        raise SelectionError(f"{amount} {value} selects nothing of {total:,} elements: raise it.")
    if n >= total:
        raise SelectionError(
            f"{amount} {value} selects all of the {total:,} elements: that is full fine-tuning. Lower it."
        )
    return shares


def _random(weights, shares, seed) -> dict[str, torch.Tensor]:
    """Drawn on the CPU, whatever the device, and without a permutation of all elements: numbers are drawn until as
    many different ones have come up as are wanted."""
    generator = torch.Generator().manual_seed(seed)
    indices = {}
    for names, n in shares:
        ends = torch.tensor([weights[name].numel() for name in names]).cumsum(0)
        drawn = torch.empty(0, dtype=torch.int64)
        while len(drawn) < n:
            more = torch.randint(int(ends[-1]), (n - len(drawn),), generator=generator)
            drawn = torch.cat([drawn, more]).unique()
        borders = [0, *torch.searchsorted(drawn, ends).tolist()]
        for name, end, first, last in zip(names, ends.tolist(), borders, borders[1:]):
            index = drawn[first:last] - (end - weights[name].numel())
            indices[name] = index.to(weights[name].device, torch.int32)
    return indices


def _extreme(weights, shares, largest: bool) -> tuple[dict[str, torch.Tensor], float]:
    """The elements of smallest or largest magnitude, and the (mirrored) magnitude of the last one taken."""
    magnitudes = _Magnitudes(weights, mirrored=largest)
    indices, bound = {}, 0.0
    for names, n in shares:
        chosen, bound = _smallest(magnitudes, {name: weights[name] for name in names}, n)
        indices.update(chosen)
    return indices, bound


class _Magnitudes:
    """|w| of the weights in fp32, or mirrored -|w|, a chunk of whole rows in logical order at a time.

    All chunks share one buffer per device: fresh ones of several MB, freed between small results that are kept, leave
    the process holes that it cannot give back.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], mirrored: bool = False):
        needed: dict[torch.device, int] = {}
        for weight in weights.values():
            columns, step = _chunk_of(weight)
            needed[weight.device] = max(needed.get(weight.device, 0), columns * step)
        self.buffers = {device: torch.empty(size, device=device) for device, size in needed.items()}
        self.mirrored = mirrored

    def chunks(self, weight: torch.Tensor):
        """Yields (first flat position, 1-D fp32 tensor); a chunk is valid until the next is asked for."""
        columns, step = _chunk_of(weight)
        matrix = weight.detach().unsqueeze(0) if weight.dim() <= 1 else weight.detach()
        for row in range(0, len(matrix), step):
            part = matrix[row:row + step]
            chunk = self.buffers[weight.device][:part.numel()]
            chunk.view(part.shape).copy_(part)
            yield row * columns, chunk.abs_().neg_() if self.mirrored else chunk.abs_()

    def positions(self, weight: torch.Tensor, keep) -> torch.Tensor:
        """Flat positions, int32, of the elements for whose magnitude `keep` is true."""
        found = [
            keep(chunk).nonzero().view(-1).add_(start).to(torch.int32) for start, chunk in self.chunks(weight)
        ]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int32, device=weight.device)

    def at(self, weight: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Those at flat positions `index`: fp32 [len(index)]."""
        magnitudes = gather(weight, index).abs().float()
        return magnitudes.neg_() if self.mirrored else magnitudes

    def smallest(self, weight: torch.Tensor) -> float:
        """The smallest that is a number; infinite if there is none."""
        chunks = (chunk.nan_to_num_(nan=math.inf, posinf=math.inf) for _, chunk in self.chunks(weight) if chunk.numel())
        return min((float(chunk.min()) for chunk in chunks), default=math.inf)


def _chunk_of(weight) -> tuple[int, int]:
    """(elements of a row, rows of a chunk)"""
    rows = weight.shape[0] if weight.dim() > 1 else 1
    columns = max(1, weight.numel() // max(1, rows))
    return columns, min(max(1, CHUNK // columns), rows)


def _sampled_bound(magnitudes: _Magnitudes, weights, n: int, total: int) -> float:
    """A guess at a magnitude with somewhat more than n elements at or below it, from an even sample."""
    stride = max(1, total // SAMPLE)
    sample = torch.cat([
        chunk[::stride].clone().cpu() for w in weights.values() for _, chunk in magnitudes.chunks(w)
    ])
    rank = min(sample.numel(), int(MARGIN * n / total * sample.numel()) + 16)
    # A weight that is not a number sorts last, as infinity does, and like it must not become the bound's end.
    return float(sample.nan_to_num_(nan=math.inf, posinf=math.inf).kthvalue(rank).values)


def _smallest(magnitudes: _Magnitudes, weights, n: int) -> tuple[dict[str, torch.Tensor], float]:
    """Exactly the n elements of smallest magnitude, without a copy of the weights: guess a bound, collect what lies
    at or below it, and cut there."""
    total = sum(weight.numel() for weight in weights.values())
    bound = _sampled_bound(magnitudes, weights, n, total)
    while True:
        found = {name: magnitudes.positions(weight, lambda a: a <= bound) for name, weight in weights.items()}
        if sum(index.numel() for index in found.values()) >= n:
            break
        if bound == math.inf:
            raise SelectionError(
                f"Fewer than {n:,} of the weights are numbers; the others are NaN. The model's file is damaged, or was "
                "merged wrongly: load another one."
            )
        bound = math.inf if bound == 0 else bound * 2 if bound > 0 else bound / 2
    return cut(found, {name: magnitudes.at(weight, found[name]) for name, weight in weights.items()}, n)


def cut(
    found: Mapping[str, torch.Tensor], keys: Mapping[str, torch.Tensor], n: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Of the elements at positions `found`, name → int32 [m], those with the n lowest `keys`, name → fp32 [m], and
    the last key taken; among equals the first in the order of `found`. There must be n that are no NaN."""
    last = float(torch.cat([key.cpu() for key in keys.values()]).kthvalue(n).values)
    room_for_equals = n - sum(int((key < last).sum()) for key in keys.values())
    indices = {}
    for name, key in keys.items():
        equal = key == last
        keep = (key < last) | (equal & (equal.cumsum(0) <= room_for_equals))
        room_for_equals -= min(room_for_equals, int(equal.sum()))
        indices[name] = found[name][keep]
    return indices, last

