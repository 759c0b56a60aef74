"""The rules by which elements are chosen, by name: the smallest weights, and those that they are compared with.

Equations 1-3 of the SaRA paper (arXiv 2409.06633): the support is M = {|p| < θ} with one threshold θ for the whole
model. For models whose θ nobody has published, the same smallest elements can be asked for by count or by density.
The paper compares them with the largest and with random ones; the largest |w · ∂L/∂w| are those that SNIP (Lee et al.,
arXiv 1810.02340) keeps.

A rule of one's own is a function, here one that takes the first elements of every weight:

    def first(request):
        return {name: torch.arange(n, dtype=torch.int32) for (name,), n in request.shares}

    optimizer = sara_core.SaRA(model, density=0.01, per_layer=True, rule=first)

or is added to RULES, and then has a name for everyone: RULES["first"] = Rule(first).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..errors import SelectionError
from . import magnitudes
from .magnitudes import Shares
from .one_at_a_time import outlines

ByGradient = Callable[[Mapping[str, torch.Tensor], Shares], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Request:
    """What a rule is asked.

    weights: name → floating-point tensor of any shape, memory format and device, without gradient: the model's own
        memory, to be read and neither written nor kept
    shares: (names, n) after (names, n): n elements are wanted of the weights of these names together. Every name
        stands in exactly one: all in one, or each in one of its own.
    generator: for whatever is drawn, on the CPU and seeded by the user, so that a choice can be made again. Where
        several processes train together all must choose the same.
    not_finite: name → how many of a weight's elements are NaN or infinite, for weights that have some. None of them may
        be chosen; of the others there are enough.
    by_gradient: for a rule that needs a loss: (weights, shares) → the elements with the largest |w · ∂L/∂w|, as the
        rule is to return them. Its weights may be others of the same names and shapes: with ones |∂L/∂w| counts.
    """

    weights: Mapping[str, torch.Tensor]
    shares: Shares
    generator: torch.Generator
    by_gradient: ByGradient | None = None
    not_finite: Mapping[str, int] = field(default_factory=dict)


# name → the elements chosen in that weight: their flat positions in logical (row-major) order, int32 or int64 [k] and
# increasing, or a mask, bool of the weight's shape; on any device. A weight without any may be absent. The caller owns
# what it gets. `select` raises SelectionError for anything else; what a rule raises goes through it.
Chosen = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """How elements are chosen.

    choose: finds exactly as many as the request's shares say
    below: for a rule that divides small weights from large ones at a θ: finds those with |w| < θ of a request's
        weights, at least one and not all; None for every other rule
    needs_loss: whether it looks at the gradient of a loss
    takes_seed: whether it draws, so that the seed belongs to what was asked for
    only_reads: whether it is known to write into no weight, so that nobody need ask them all for it
    """

    choose: Callable[[Request], Chosen]
    below: Callable[[Mapping[str, torch.Tensor], float], Chosen] | None = None
    needs_loss: bool = False
    takes_seed: bool = False
    only_reads: bool = False

    @property
    def has_theta(self) -> bool:
        """Whether it divides small weights from large ones at a θ, and can be asked by a threshold."""
        return self.below is not None


def _smallest(request: Request) -> Chosen:
    return magnitudes.smallest(request.weights, request.shares)


def _largest(request: Request) -> Chosen:
    return magnitudes.largest(request.weights, request.shares)


def _random(request: Request) -> Chosen:
    """Drawn on the CPU, whatever the device, and without a permutation of all elements: numbers are drawn until as
    many different ones have come up as are wanted. What is drawn is the number of an element among the finite ones."""
    positions, known = {}, outlines(request.weights)
    for names, n in request.shares:
        sizes = [known[name].numel() - request.not_finite.get(name, 0) for name in names]
        ends = torch.tensor(sizes).cumsum(0)
        drawn = torch.empty(0, dtype=torch.int64)
        while len(drawn) < n:
            more = torch.randint(int(ends[-1]), (n - len(drawn),), generator=request.generator)
            drawn = torch.cat([drawn, more]).unique()
        borders = [0, *torch.searchsorted(drawn, ends).tolist()]
        for name, size, end, first, last in zip(names, sizes, ends.tolist(), borders, borders[1:]):
            positions[name] = drawn[first:last] - (end - size)
            if name in request.not_finite:
                positions[name] = magnitudes.finite_positions(request.weights[name])[positions[name]]
    return positions


def _gradient(request: Request) -> Chosen:
    return request.by_gradient(request.weights, request.shares)


SMALLEST = "smallest"
RULES: dict[str, Rule] = {
    SMALLEST: Rule(_smallest, below=magnitudes.below, only_reads=True),
    "largest": Rule(_largest, only_reads=True),
    "random": Rule(_random, takes_seed=True, only_reads=True),
    "gradient": Rule(_gradient, needs_loss=True, only_reads=True),
}


def named_rule(rule: str | Rule | Callable[[Request], Chosen]) -> tuple[str, Rule]:
    """A rule and what a file calls it: its name in RULES, or the qualified name of a function of somebody's own.

    Raises SelectionError for a name that is not in RULES, and for what is no rule.
    """
    if isinstance(rule, Rule):
        return _qualified_name(rule.choose), rule
    if not isinstance(rule, str) and callable(rule):
        return _qualified_name(rule), Rule(rule, takes_seed=True)
    if rule not in RULES:
        raise SelectionError(f"There is no selection rule '{rule}'. Choose one of: {', '.join(RULES)}.")
    return rule, RULES[rule]


def _qualified_name(function) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
