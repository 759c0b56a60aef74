"""What could make SaRA as it is shipped better, tried on the tuning style by successive halving: all candidates for a
short time, the better ones longer and on more seeds (https://arxiv.org/abs/1502.07943).

Each is options of training.train: a method's own, or `levels`, `prior`, `chosen_by`. Another choice of weights may want
another learning rate, so that in the first round each is tried with SaRA's tuned one and a third of it, and with lower
ones as long as the lowest is the best. What comes out on top is a proposal: whether it is better is for the table to
say, on styles that chose nothing.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .plan import TUNING_SEED
from .protocol import BUDGETS, TUNING_STYLE, Cell, tuning_score
from .training import Settings

AS_SHIPPED = "as shipped"
CANDIDATES: dict[str, dict[str, object]] = {
    AS_SHIPPED: {},
    "no adjustment": {"adjust_at": ()},
    "adjustment at 0.25": {"adjust_at": (0.25,)},
    "low-rank loss, λ = 5e-5": {"adjust_at": (), "low_rank_weight": 5e-5},
    "low-rank loss, λ = 5e-4": {"adjust_at": (), "low_rank_weight": 5e-4},
    "per layer": {"adjust_at": (), "per_layer": True},
    "largest |gradient · w|": {"adjust_at": (), "rule": "gradient"},
    "smallest |w| · size of the input": {"adjust_at": (), "rule": "small effect"},
    "largest |gradient|": {"adjust_at": (), "rule": "steep"},
    "largest |gradient|, 256 pictures": {"adjust_at": (), "rule": "steep", "chosen_by": 256},
    "largest |gradient| of the smaller half": {"adjust_at": (), "rule": "steep and small", "chosen_by": 256},
    "steadiest gradient, 256 pictures": {"adjust_at": (), "rule": "steady", "chosen_by": 256},
    "random": {"adjust_at": (), "rule": "random"},
    "steps by the size of a layer's weights": {"adjust_at": (), "scaled": True},
    "decay of Δ, 0.1": {"adjust_at": (), "decay": 0.1},
    "average of Δ": {"adjust_at": (), "average": 0.98},
    "less of the highest noise": {"adjust_at": (), "levels": "low"},
    "more of the middle": {"adjust_at": (), "levels": "middle"},
    **{f"kept near the base, {weight:g}": {"adjust_at": (), "prior": weight} for weight in (0.1, 0.3, 1.0)},
    "kept near, 0.3, per layer": {"adjust_at": (), "prior": 0.3, "per_layer": True},
    "kept near, 0.3, less of the highest noise": {"adjust_at": (), "prior": 0.3, "levels": "low"},
    "kept near, 0.3, both": {"adjust_at": (), "prior": 0.3, "levels": "low", "per_layer": True},
}


# What is kept near the base learns slowly at first, so that a quarter of a run says little of it. Whole runs, by
# candidate and half powers of ten beside SaRA's tuned rate:
WHOLE_RUNS = (
    ("no adjustment", 0), ("kept near the base, 0.1", 0), ("kept near the base, 0.3", 0),
    ("kept near the base, 0.3", 0.5),
)  # fmt: skip


class Round(NamedTuple):
    """length: part of the usual run's; judged: pictures of a training; seeds: trainings of each candidate; through: how
    many candidates come into the next round"""

    length: float
    judged: int
    seeds: int
    through: int


# Half of what a short run takes would be drawing, and to drop the worse ones needs no fine figures.
ROUNDS = (Round(0.25, 100, 1, 4), Round(0.5, 100, 2, 1))
FIRST_HALVES, MOST_TRIES = (-1, 0), 4  # half powers of ten beside SaRA's tuned rate
SHARE = BUDGETS[1]


def halved(measured: Callable[[Round, list[Cell]], list[dict | None]], rate: float) -> list[dict]:
    """The lines of all rounds, each with its round, candidate and score.

    measured: the lines of cells that are trained and judged as a round says, None for one that failed
    rate: SaRA's tuned one
    """
    found: list[dict] = []

    def scores(number: int, tried: list[tuple[str, int]]) -> dict[tuple[str, int], float]:
        """Means of a round's seeds for candidates and half powers of ten beside the tuned rate."""
        one = ROUNDS[number]
        cells = [_cell(name, seed, rate * 10 ** (half / 2)) for name, half in tried for seed in range(one.seeds)]
        lines, means = measured(one, cells), {}
        for place, (name, half) in enumerate(tried):
            own = [line for line in lines[place * one.seeds : (place + 1) * one.seeds] if line is not None]
            found.extend({**line, "round": number, "candidate": name, "score": tuning_score(line)} for line in own)
            means[name, half] = sum(map(tuning_score, own)) / len(own) if len(own) == one.seeds else -math.inf
        return means

    first = scores(0, [(name, half) for name in CANDIDATES for half in FIRST_HALVES])
    while lower := [name for name in CANDIDATES if _lowest_is_best(name, first)]:
        first |= scores(0, [(name, min(half for own, half in first if own == name) - 1) for name in lower])
    best, ranked = {}, {}
    for (name, half), score in sorted(first.items(), key=lambda item: item[1]):
        best[name], ranked[name] = half, score
    for number, before in enumerate(ROUNDS[:-1], 1):
        order = sorted(ranked, key=ranked.__getitem__, reverse=True)
        # What is shipped always comes through.
        left = dict.fromkeys([*order[: before.through], AS_SHIPPED])
        ranked = {name: score for (name, _), score in scores(number, [(name, best[name]) for name in left]).items()}
    return found


def whole_runs(rate: float) -> list[Cell]:
    """WHOLE_RUNS on the tuning style, with another seed than the tuning's.

    rate: SaRA's tuned one
    """
    return [_cell(name, 0, rate * 10 ** (half / 2)) for name, half in WHOLE_RUNS]


def name_of(line: dict) -> str | None:
    """Which candidate a line is of, None if of none."""
    options = json.dumps(line["options"])
    return next((name for name, own in CANDIDATES.items() if json.dumps(list(own.items())) == options), None)


def first_round(known: Sequence[dict]) -> list[dict]:
    """Of the lines of a file those of the first round, as `halved` has them."""
    steps = round(ROUNDS[0].length * Settings.steps)
    own = [line for line in known if (line.get("style"), line.get("seed")) == (TUNING_STYLE, TUNING_SEED + 1)
           and line["made with"]["steps"] == steps and name_of(line)]  # fmt: skip
    return [{**line, "round": 0, "candidate": name_of(line), "score": tuning_score(line)} for line in own]


def _cell(name: str, seed: int, rate: float) -> Cell:
    return Cell("SaRA", SHARE, TUNING_STYLE, TUNING_SEED + 1 + seed, rate, tuple(CANDIDATES[name].items()))


def _lowest_is_best(name: str, scores: dict[tuple[str, int], float]) -> bool:
    own = {half: score for (candidate, half), score in scores.items() if candidate == name}
    return len(own) < MOST_TRIES and max(own, key=own.__getitem__) == min(own)
