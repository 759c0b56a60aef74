"""The search for a learning rate: as many tries for every method, each next one where those before it say.

Rates are half powers of ten around a method's middle rate: three a power of ten apart; then, until there are TRIES,
one beyond the best where the best is the lowest or the highest, and else one between the best and its better neighbour.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

FIRST = (-2.0, 0.0, 2.0)
TRIES = 5
Tuned = TypeVar("Tuned", bound=Hashable)


def best(asked: Sequence[Tuned], measured: Callable[[list[tuple[Tuned, float]]], list[float]]) -> dict[Tuned, float]:
    """The best half power of ten of each of what is tuned; tries that do not depend on each other are asked together.

    measured: the scores, higher is better, of pairs of what is tuned and a half power of ten
    """
    scores: dict[Tuned, dict[float, float]] = {one: {} for one in asked}
    while tries := [(one, half) for one in asked for half in following(scores[one])]:
        for (one, half), score in zip(tries, measured(tries)):
            scores[one][half] = score
    return {one: max(scores[one], key=scores[one].__getitem__) for one in asked}


def following(scores: Mapping[float, float]) -> list[float]:
    """The half powers of ten to try next, after some and their scores; none when there have been enough."""
    if not scores:
        return list(FIRST)
    if len(scores) >= TRIES:
        return []
    tried = sorted(scores)
    at = tried.index(max(tried, key=scores.__getitem__))
    if at == 0:
        return [tried[0] - 2]
    if at == len(tried) - 1:
        return [tried[-1] + 2]
    neighbour = max(tried[at - 1], tried[at + 1], key=scores.__getitem__)
    return [(tried[at] + neighbour) / 2]
