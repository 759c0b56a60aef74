"""What could make SaRA as it is shipped better, tried on the tuning style by successive halving: all candidates for a
short time, the better half of them longer and on more seeds, and so on (https://arxiv.org/abs/1502.07943).

Each is options of training.train: a method's own, or `levels`, `prior`. The rate of each is SaRA's tuned one and three
times it, for another choice of weights may want another. What comes out on top is a proposal: whether it is better is
for the table to say, on styles that chose nothing.
"""

from collections.abc import Callable
from pathlib import Path

from . import lines
from .bench import Bench
from .plan import TUNING_SEED
from .protocol import BUDGETS, TUNING_STYLE, Cell, tuning_score

CANDIDATES: dict[str, dict[str, object]] = {
    "as shipped": {},
    "no adjustment": {"adjust_at": ()},
    "adjustment at 0.25": {"adjust_at": (0.25,)},
    "low-rank loss, λ = 5e-5": {"adjust_at": (), "low_rank_weight": 5e-5},
    "per layer": {"adjust_at": (), "per_layer": True},
    "largest |gradient · w|": {"adjust_at": (), "rule": "gradient"},
    "smallest |w| · size of the input": {"adjust_at": (), "rule": "small effect"},
    "largest |gradient|": {"adjust_at": (), "rule": "steep"},
    "random": {"adjust_at": (), "rule": "random"},
    "steps by the size of a layer's weights": {"adjust_at": (), "scaled": True},
    "decay of Δ, 0.1": {"adjust_at": (), "decay": 0.1},
    "average of Δ": {"adjust_at": (), "average": 0.98},
    "less of the highest noise": {"adjust_at": (), "levels": "low"},
    "more of the middle": {"adjust_at": (), "levels": "middle"},
    "kept near the base's predictions": {"adjust_at": (), "prior": 1.0},
}
# Of the run's length, seeds and how many candidates come through.
ROUNDS = ((0.25, 1, 7), (0.5, 2, 3), (1.0, 3, 1))
RATES = (1.0, 3.0)
SHARE = BUDGETS[1]


def halved(bench_of: Callable[[float], Bench], rate: float, file: Path) -> list[dict]:
    """The lines of all rounds, each with its round, candidate and score.

    bench_of: a bench whose runs are a part of the usual length
    """
    left = [(name, factor) for name in CANDIDATES for factor in RATES]
    found = []
    for number, (length, seeds, through) in enumerate(ROUNDS):
        bench, scores = bench_of(length), {}
        for name, factor in left:
            cells = [
                Cell("SaRA", SHARE, TUNING_STYLE, TUNING_SEED + 1 + seed, rate * factor,
                     tuple(CANDIDATES[name].items()))
                for seed in range(seeds)
            ]  # fmt: skip
            measured = lines.run([bench.job(cell) for cell in cells], bench.made_with, file)
            scores[name, factor] = sum(map(tuning_score, measured)) / len(measured)
            found += [{**line, "round": number, "candidate": name, "score": tuning_score(line)} for line in measured]
        # The better of a candidate's two rates goes on, and what is shipped always does.
        best = {name: max((f for n, f in left if n == name), key=lambda f: scores[name, f]) for name, _ in left}
        order = sorted(best, key=lambda name: scores[name, best[name]], reverse=True)
        names = dict.fromkeys([*order[:through], "as shipped"])
        left = [(name, best[name]) for name in names]
    return found
