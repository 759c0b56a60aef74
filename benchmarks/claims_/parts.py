"""What the paper says beside its table, part by part: each part is jobs for a bench, and a table of their lines.

premise   that the smallest weights do nothing: the base with some of its weights at 0
ablation  what the adjustment, the low-rank loss and the choice of weights are worth
strength  one style at strengths from -0.5 to 2
merging   two styles in one model: deltas added, by TIES and by DARE, and two LoRAs added
subject   one thing from five pictures (subject.py)
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch

from . import changes, premise, subject
from .bench import Bench
from .lines import Job
from .methods import attention, feed_forwards, layers
from .protocol import BUDGETS, SEEDS, T1_STYLES, Cell

Rate = Callable[[str, float], float]
SHARE = BUDGETS[1]
STYLE = T1_STYLES[0]
PAPERS_WEIGHT = 5e-4  # λ of the authors' scripts; the paper's text has ten times as much

# What to call it → options of methods.sara; without any it is what SaRA Train does, the adjustment only.
ABLATIONS: dict[str, dict[str, object]] = {
    "neither": {"adjust_at": ()},
    "adjustment": {},
    "low-rank loss": {"adjust_at": (), "low_rank_weight": PAPERS_WEIGHT},
    "both": {"low_rank_weight": PAPERS_WEIGHT},
    **{f"both, λ = {weight:g}": {"low_rank_weight": weight} for weight in (5e-5, 5e-3)},
    **{f"adjustment at {part}": {"adjust_at": (part,)} for part in (0.25, 0.75)},
    "adjustment twice": {"adjust_at": (1 / 3, 2 / 3)},
    **{f"{rule} weights": {"adjust_at": (), "rule": rule} for rule in ("largest", "random", "gradient")},
}
STRENGTHS = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
MERGES = ("sum", "ties", "dare")
MERGE_WEIGHTS = (0.6, 1.0)  # of each of the two: the paper's, and whole


def premise_jobs(bench: Bench, _rate: Rate) -> list[Job]:
    """The base with a share of its weights at 0: the smallest, those just above them, random ones; and the smallest of
    one kind of layer."""
    kinds = {
        "all": None,
        "attention": attention,
        "feed-forward": lambda model: [name for name in layers(model) if name.startswith(tuple(feed_forwards(model)))],
        "convolutions": lambda model: [n for n, m in layers(model).items() if isinstance(m, torch.nn.Conv2d)],
    }

    def measured(share: float, chosen: str, kind: str) -> dict:
        model = bench.new_model()
        own = None if kinds[kind] is None else kinds[kind](model)
        theta, count = premise.zero(model, share, chosen, own)
        return {"theta": theta, "zeroed": count, **bench.base_figures(model, STYLE)}

    wanted = [(share, chosen, "all") for share in premise.SHARES for chosen in premise.CHOICES]
    wanted += [(share, "smallest", kind) for share in premise.SHARES for kind in kinds if kind != "all"]
    return [
        Job({"part": "premise", "share": share, "chosen": chosen, "layers": kind},
            lambda given=(share, chosen, kind): measured(*given))
        for share, chosen, kind in wanted
    ]  # fmt: skip


def ablation_jobs(bench: Bench, rate: Rate) -> list[Job]:
    """SaRA with and without its parts, paired over seeds."""
    return [
        bench.job(Cell("SaRA", SHARE, STYLE, seed, rate("SaRA", SHARE), tuple(options.items())))
        for seed in SEEDS for options in ABLATIONS.values()
    ]  # fmt: skip


def _changes(bench: Bench, rate: Rate):
    @lru_cache(maxsize=2)
    def found(method: str, style: str, seed: int) -> changes.Changes:
        cell = Cell(method, SHARE, style, seed, rate(method, SHARE))
        return changes.changes_of(bench.trained(cell).model, bench.new_model())

    return found


def strength_jobs(bench: Bench, rate: Rate) -> list[Job]:
    """One training of SaRA and one of LoRA at every strength."""
    changes_for = _changes(bench, rate)

    def measured(method: str, strength: float) -> dict:
        model = changes.add(bench.new_model(), changes_for(method, STYLE, 0), strength)
        return bench.figures(model.requires_grad_(False).eval(), STYLE)

    return [
        Job({"part": "strength", "method": method, "strength": strength},
            lambda given=(method, strength): measured(*given))
        for method in ("SaRA", "LoRA") for strength in STRENGTHS
    ]  # fmt: skip


def merging_jobs(bench: Bench, rate: Rate) -> list[Job]:
    """Two styles in one model, judged by both of their triggers."""
    from sara_core import merge

    changes_for = _changes(bench, rate)
    styles = T1_STYLES[:2]

    def measured(method: str, how: str, weight: float, seed: int) -> dict:
        both = [changes_for(method, style, seed) for style in styles]
        model = bench.new_model()
        if how == "sum":
            for one in both:
                changes.add(model, one, weight)
        else:
            merged = merge([changes.sparse(one) for one in both], weight, how, seed=seed)
            changes.add(model, changes.dense(merged))
        model = model.requires_grad_(False).eval()
        return {style: bench.figures(model, style) for style in styles}

    wanted = [("SaRA", how, weight) for weight in MERGE_WEIGHTS for how in MERGES]
    wanted += [("LoRA", "sum", weight) for weight in MERGE_WEIGHTS]
    return [
        Job({"part": "merging", "method": method, "how": how, "weight": weight, "seed": seed},
            lambda given=(method, how, weight, seed): measured(*given))
        for seed in SEEDS for method, how, weight in wanted
    ]  # fmt: skip


# The methods whose learning rate a part needs, at SHARE, and the styles that its pictures are of.
RATED = {
    "premise": (), "ablation": ("SaRA",), "strength": ("SaRA", "LoRA"), "merging": ("SaRA", "LoRA"),
    "subject": ("SaRA", "LoRA"),
}  # fmt: skip
STYLED = {
    "premise": T1_STYLES[:1], "ablation": T1_STYLES[:1], "strength": T1_STYLES[:1], "merging": T1_STYLES[:2],
    "subject": (),
}  # fmt: skip
PARTS = {
    "premise": premise_jobs, "ablation": ablation_jobs, "strength": strength_jobs, "merging": merging_jobs,
    "subject": subject.jobs,
}  # fmt: skip


def jobs(part: str, bench: Bench, rates: Mapping[tuple[str, float], float]) -> list[Job]:
    """A part's jobs, with the learning rates of what RATED says."""
    return PARTS[part](bench, lambda *one: rates[one])
