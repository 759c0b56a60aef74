"""That a rule has chosen what it was asked for: whatever it returns becomes int32 positions here, or an error."""

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import SelectionError
from ..tensors.elements import gather
from .magnitudes import Shares
from .one_at_a_time import Outline


def checked_positions(
    rule: str, chosen: Any, weights: Mapping[str, Outline], shares: Shares | None
) -> dict[str, torch.Tensor]:
    """What a rule has chosen (rules.Chosen), by names in the order of `weights`: flat positions, int32 [k] with k > 0,
    increasing, on the weight's device.

    rule: its name; weights: name → outline; shares: how many were wanted, None for a rule that was given a threshold

    Raises SelectionError, with the rule and the weight, for anything else.
    """
    if not isinstance(chosen, Mapping):
        raise _broken(rule, f"returned a {type(chosen).__name__}, no dict of weight name → positions")
    if unknown := [name for name in chosen if name not in weights]:
        raise _broken(rule, f"chose from '{unknown[0]}', which it was not given")
    positions = {name: _positions(rule, name, chosen[name], weights[name]) for name in weights if name in chosen}
    positions = {name: index for name, index in positions.items() if len(index)}
    if shares is None:
        shares, total = [], sum(weight.numel() for weight in weights.values())
        if not 0 < (found := sum(map(len, positions.values()))) < total:
            raise _broken(rule, f"chose {found:,} of {total:,} elements as those below the threshold")
    for names, n in shares:
        found = sum(len(positions[name]) for name in names if name in positions)
        if found != n:
            of = f"'{names[0]}'" if len(names) == 1 else f"the {len(names)} weights from '{names[0]}' to '{names[-1]}'"
            raise _broken(rule, f"chose {found:,} elements of {of}, where {n:,} were asked for")
    return positions


def check_finite(
    rule: str,
    weights: Mapping[str, torch.Tensor],
    positions: Mapping[str, torch.Tensor],
    not_finite: Mapping[str, int],
) -> None:
    """Raise SelectionError if a rule has chosen elements that are NaN or infinite.

    positions: as checked_positions gives them; not_finite: the weights that have such elements
    """
    for name in not_finite:
        if name in positions and not bool(gather(weights[name], positions[name]).isfinite().all()):
            raise _broken(rule, f"chose elements of '{name}' that are NaN or infinite (Request.not_finite counts them)")


def check_unchanged(rule: str, weights: Mapping[str, torch.Tensor], before: Mapping[str, int]) -> None:
    """Raise SelectionError for a weight that was written to since `before` (`write_counts`)."""
    now = write_counts(weights)
    if changed := [name for name in before if now[name] != before[name]]:
        raise SelectionError(
            f"The selection rule '{rule}' has written into '{changed[0]}', which it may only read: load the model "
            "again, and let the rule work on a copy."
        )


def write_counts(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How often torch has written into each weight's memory. Tensors made in inference mode, which do not count, are
    left out."""
    return {name: weight._version for name, weight in weights.items() if not weight.is_inference()}


def _positions(rule: str, name: str, part, weight: Outline) -> torch.Tensor:
    if not isinstance(part, torch.Tensor):
        raise _broken(rule, f"returned a {type(part).__name__} for '{name}', no tensor")
    if part.dtype == torch.bool:
        if part.shape != weight.shape:
            raise _broken(
                rule, f"returned a mask of shape {list(part.shape)} for '{name}', which has {list(weight.shape)}"
            )
        part = part.reshape(-1).nonzero().view(-1)
    elif part.dtype not in (torch.int32, torch.int64) or part.dim() != 1:
        raise _broken(rule, f"returned {part.dim()}-dimensional {part.dtype} for '{name}': positions are one row of "
                      "int32, a mask is bool")  # fmt: skip
    elif len(part):
        if not bool((part[1:] > part[:-1]).all()):
            raise _broken(rule, f"returned positions in '{name}' that do not increase")
        if int(part[0]) < 0 or int(part[-1]) >= weight.numel():
            raise _broken(rule, f"returned positions from {int(part[0])} to {int(part[-1])} in '{name}', which has "
                          f"{weight.numel():,} elements")  # fmt: skip
    return part.to(weight.device, torch.int32)


def _broken(rule: str, what: str) -> SelectionError:
    return SelectionError(f"The selection rule '{rule}' {what}.")
