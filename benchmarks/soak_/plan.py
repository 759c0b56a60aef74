"""What is done in which order: drawn from the seed alone, so that a run can be seen again."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NOTHING = "nothing"


class Turn(NamedTuple):
    """One action, and what disturbs it; ``choose`` gives every detail of both."""

    number: int
    action: str
    fault: str
    choose: random.Random


def turns(seed: int, actions: Sequence[str], faults: Sequence[str]) -> Iterator[Turn]:
    """Turns without end. In each round of `round_length` every action and every fault comes at least once."""
    length, number = round_length(actions, faults), 0
    for round_number in range(10**9):
        shuffled = random.Random(f"{seed}, round {round_number}")
        first, second = (
            shuffled.sample([*names, *fillers], length)
            for names, fillers in (
                (actions, shuffled.choices(actions, k=length - len(actions))),
                (faults, [NOTHING] * (length - len(faults))),
            )
        )
        for action, fault in zip(first, second, strict=True):
            number += 1
            yield Turn(number, action, fault, random.Random(f"{seed}, turn {number}"))


def round_length(actions: Sequence[str], faults: Sequence[str]) -> int:
    """Half as many undisturbed turns as disturbed ones, unless there are more actions than that."""
    return max(len(actions), len(faults) + len(faults) // 2)
