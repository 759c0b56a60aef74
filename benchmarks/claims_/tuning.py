"""The search for a learning rate: as many tries for every method, each next one where those before it say.

Rates are half powers of ten around a method's middle rate: three a power of ten apart; then, until there are TRIES,
one beyond the best where the best is the lowest or the highest, and else the nearest to the best of those left out
between, the higher one first: scores fall slowly below the best rate and steeply above it, so that what is better may
lie on the side whose next rate is the worse.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

FIRST = (-2, 0, 2)
TRIES = 5
Tuned = TypeVar("Tuned", bound=Hashable)


def best(asked: Sequence[Tuned], measured: Callable[[list[tuple[Tuned, int]]], list[float]]) -> dict[Tuned, int]:
    """The best half power of ten of each of what is tuned; tries that do not depend on each other are asked together.

    measured: the scores, higher is better, of pairs of what is tuned and a half power of ten
    """
    scores: dict[Tuned, dict[int, float]] = {one: {} for one in asked}
    while tries := [(one, half) for one in asked for half in following(scores[one])]:
        for (one, half), score in zip(tries, measured(tries)):
            scores[one][half] = score
    return {one: max(scores[one], key=scores[one].__getitem__) for one in asked}


def following(scores: Mapping[int, float]) -> list[int]:
    """The half powers of ten to try next, after some and their scores; none when there have been enough."""
    if not scores:
        return list(FIRST)
    if len(scores) >= TRIES:
        return []
    best_tried, lowest, highest = max(scores, key=scores.__getitem__), min(scores), max(scores)
    if best_tried == lowest:
        return [lowest - 2]
    if best_tried == highest:
        return [highest + 2]
    between = (half for half in range(lowest, highest) if half not in scores)
    return [min(between, key=lambda half: (abs(half - best_tried), -half))]
