"""Which elements are trained: as many as are asked for, by a rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ..delta.entry import MAX_ELEMENTS
from ..errors import SelectionError
from ..numbers import LARGEST_COUNT, SEED_RANGE, checked
from ..wording import Sentence
from . import magnitudes
from .contract import check_finite, check_unchanged, checked_positions, write_counts
from .magnitudes import Shares, check_threshold, largest_chosen
from .one_at_a_time import OneAtATime, one_at_a_time, outlines
from .rules import RULES, SMALLEST, ByGradient, Chosen, Request, Rule, named_rule


@dataclass(frozen=True)
class Selection:
    """The chosen elements of each weight.

    indices: name → int32 [n], sorted flat positions in logical (row-major) order; weights without any are absent
    count: number of chosen elements
    theta: θ; for a count or density the largest selected |w|. None where no threshold divides the chosen from the
        others: for every rule but "smallest", and per layer
    candidates: number of elements the choice was made from; not_finite: how many of them are NaN or infinite, as in a
        damaged file, and were left out
    rule: what was asked for, for the file's metadata, e.g. {"rule": "smallest", "count": 5000000}
    """

    indices: dict[str, torch.Tensor]
    count: int
    theta: float | None
    candidates: int
    rule: dict
    not_finite: int = 0

    def without_indices(self) -> "Selection":
        """What to keep for a report while a run goes on: the support holds the positions in its own form."""
        return replace(self, indices={})

    @property
    def density(self) -> float:
        """Chosen elements as a share of the candidates, 0 … 1."""
        return self.count / self.candidates


def select(
    weights: Mapping[str, torch.Tensor],
    *,
    threshold: float | None = None,
    count: int | None = None,
    density: float | None = None,
    rule: str | Rule | Callable[[Request], Chosen] = SMALLEST,
    per_layer: bool = False,
    seed: int = 0,
    by_gradient: ByGradient | None = None,
) -> Selection:
    """Choose elements of `weights` by a rule, and how many by exactly one of threshold, count and density.

    weights: name → floating-point tensor of any shape and memory format; read, never copied as a whole. A mapping may
        make a tensor when it is asked for it: it is asked several times, and one of them is held at a time
    threshold: θ; every element with |w| < θ (rule "smallest" only)
    count: n elements; among equals the first in the order of `weights`
    density: as `count`, with n = density × number of elements, 0 < density < 1
    rule: "smallest" or "largest" |w|; "random", the same elements for the same seed on every device; "gradient", the
        largest |w · ∂L/∂w|; or a function of your own, which the file then names: rules.Request says what it is called
        with, rules.Chosen what it returns. A rules.Rule says of a function what else it takes, and RULES has all names.
    per_layer: each weight gives its own share: density × its elements, at least one (density only)
    seed: of what a rule draws
    by_gradient: finds the elements for a rule that needs a loss (gradient.GradientScores.largest)

    Elements that are NaN or infinite are never chosen, by no rule.

    Raises SelectionError when what is asked for is contradictory, selects nothing or everything, or is not what the
    rule returns.

    >>> import torch
    >>> from sara_core import select
    >>> weights = {"one": torch.tensor([[0.9, -0.1], [0.4, 0.02]]), "two": torch.tensor([[-0.05, 0.7]])}
    >>> selection = select(weights, threshold=0.2)
    >>> selection.indices
    {'one': tensor([1, 3], dtype=torch.int32), 'two': tensor([0], dtype=torch.int32)}
    >>> selection.density
    0.5

    >>> selection = select(weights, count=2)
    >>> selection.indices
    {'one': tensor([3], dtype=torch.int32), 'two': tensor([0], dtype=torch.int32)}
    >>> round(selection.theta, 6)
    0.05

    >>> def first_ones(request):
    ...     return {name: torch.arange(n, dtype=torch.int32) for (name,), n in request.shares}
    >>> select(weights, density=0.5, per_layer=True, rule=first_ones).indices
    {'one': tensor([0, 1], dtype=torch.int32), 'two': tensor([0], dtype=torch.int32)}
    """
    amount, value = _amount(threshold, count, density)
    seed = checked(seed, "seed", *SEED_RANGE, whole=True, error=SelectionError)
    name, rule = named_rule(rule)
    _check_rule(name, rule, amount, per_layer, by_gradient)
    weights = _without_graph(weights)
    # First: what is looked at on the way need not be asked for again.
    not_finite = magnitudes.not_finite(weights)
    total = _check_weights(weights)
    asked_for = {"rule": name, amount: value}
    if rule.takes_seed:
        asked_for["seed"] = seed
    if per_layer:
        asked_for["per_layer"] = True
    shares = None if amount == "threshold" else _shares(weights, amount, value, per_layer)
    _check_enough(weights, shares, not_finite)
    may_write = not (rule.only_reads or rule.needs_loss)  # computing a loss may write the same values back
    counts = write_counts(weights) if may_write else {}
    if shares is None:
        chosen = rule.below(weights, value)
    else:
        generator = torch.Generator().manual_seed(seed)
        chosen = rule.choose(Request(weights, shares, generator, by_gradient, not_finite))
    if may_write:
        check_unchanged(name, weights, counts)
    indices = checked_positions(name, chosen, outlines(weights), shares)
    check_finite(name, weights, indices, not_finite)
    theta = None
    if rule.has_theta and not per_layer:
        theta = float(value) if shares is None else largest_chosen(weights, indices)
    return Selection(indices, sum(map(len, indices.values())), theta, total, asked_for, sum(not_finite.values()))


def check_selectable(
    weights: Mapping[str, torch.Tensor],
    *,
    threshold: float | None = None,
    count: int | None = None,
    density: float | None = None,
    rule: str | Rule | Callable[[Request], Chosen] = SMALLEST,
    per_layer: bool = False,
    seed: int = 0,
) -> None:
    """Raise SelectionError for what `select` would refuse before it chooses, with the same arguments and, for a rule
    that needs one, a loss: to be asked before work that such a selection would make vain."""
    amount, value = _amount(threshold, count, density)
    checked(seed, "seed", *SEED_RANGE, whole=True, error=SelectionError)
    name, rule = named_rule(rule)
    _check_rule(name, rule, amount, per_layer, rule.needs_loss or None)
    weights = one_at_a_time(weights)
    _check_weights(weights)
    if amount != "threshold":
        _shares(weights, amount, value, per_layer)
    elif rule is RULES[SMALLEST]:
        check_threshold(weights, value)


def _without_graph(weights: Mapping[str, torch.Tensor]) -> OneAtATime:
    return OneAtATime(weights, lambda name: weights[name].detach())


def _amount(threshold: float | None, count: int | None, density: float | None) -> tuple[str, float]:
    """Which of them is given, and its value."""
    given = {"threshold": threshold, "count": count, "density": density}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise SelectionError(f"Give exactly one of threshold, count and density (got {sorted(given) or 'none'}).")
    (amount, value), = given.items()
    if amount == "count":
        return amount, checked(value, amount, most=LARGEST_COUNT, above=0, whole=True, error=SelectionError)
    return amount, checked(value, amount, above=0, error=SelectionError)


def _check_rule(name: str, rule: Rule, amount: str, per_layer: bool, by_gradient) -> None:
    if amount == "threshold" and not rule.has_theta:
        raise SelectionError(Sentence(
            "A threshold divides small weights from large ones, which the rule '{rule}' does not do: say by "
            "density or count how many weights it is to choose.", rule=name,
        ))  # fmt: skip
    if per_layer and amount != "density":
        raise SelectionError(Sentence(
            "Per layer only a density has a meaning: give one in place of the {amount}.", amount=amount
        ))  # fmt: skip
    if rule.needs_loss and by_gradient is None:
        raise SelectionError(f"The rule '{name}' needs a loss whose gradient it can look at.")
    if by_gradient is not None and not rule.needs_loss:
        needing = ", ".join(other for other, one in RULES.items() if one.needs_loss)
        raise SelectionError(
            f"The rule '{name}' looks at no gradient: leave the loss out, or choose a rule that needs one ({needing})."
        )


def _check_enough(weights: Mapping[str, torch.Tensor], shares: Shares | None, not_finite: Mapping[str, int]) -> None:
    sizes = outlines(weights)
    for names, n in shares or ():
        finite = sum(sizes[name].numel() - not_finite.get(name, 0) for name in names)
        if finite < n:
            raise SelectionError(
                f"Fewer than {n:,} of the weights are numbers, only {finite:,}; the others are NaN or infinite. The "
                "model's file is damaged, or was merged wrongly: load another one."
            )


def _check_weights(weights: Mapping[str, torch.Tensor]) -> int:
    """How many elements there are."""
    known = outlines(weights)
    total = sum(outline.numel() for outline in known.values())
    if total == 0:
        raise SelectionError(Sentence(
            "There is no weight to choose from: the include and exclude patterns leave no Linear or Conv layer."
        ))  # fmt: skip
    for name, outline in known.items():
        if outline.numel() > MAX_ELEMENTS:
            raise SelectionError(f"'{name}' has more than 2^31 - 1 elements: leave it out with an exclude pattern.")
        if outline.overlaps:
            raise SelectionError(
                f"'{name}' has several elements at one place in memory (it was expanded), which cannot be changed one "
                "by one: give it memory of its own with clone(), or leave it out with an exclude pattern."
            )
    return total


def _shares(weights: Mapping[str, torch.Tensor], amount: str, value: float, per_layer: bool) -> Shares:
    """Which weights give how many elements together."""
    known = outlines(weights)
    total = sum(outline.numel() for outline in known.values())
    if per_layer:
        shares = [([name], max(1, round(value * outline.numel()))) for name, outline in known.items()]
    else:
        shares = [(list(known), value if amount == "count" else round(value * total))]
    n = sum(share for _, share in shares)
    if n < 1:
        raise SelectionError(Sentence(
            "{amount} {value} selects nothing of {total} elements: raise it.", amount=amount, value=value,
            total=f"{total:,}",
        ))  # fmt: skip
    if n >= total:
        raise SelectionError(Sentence(
            "{amount} {value} selects all of the {total} elements: that is full fine-tuning. Lower it.", amount=amount,
            value=value, total=f"{total:,}",
        ))  # fmt: skip
    return shares
