"""Which cells a tier of the table has, and the cells that tune its learning rates, as the protocol says."""

from collections.abc import Callable, Iterable

from .protocol import BUDGETS, MIDDLE_RATE, SEEDS, STYLES, T1_STYLES, TRIES, TUNING_STYLE, Cell, tuning_score

PAPERS = ("full", "LoRA", "AdaptFormer", "LT-SFT", "SaRA")
BEYOND = ("LoRA everywhere", "SHiRA", "Super-Tuning", "DoRA")
# Tier → methods, budgets, styles, each of which can be published alone.
TIERS = {
    "T1": (PAPERS, BUDGETS[1:2], T1_STYLES),
    "T2": (PAPERS, (BUDGETS[0], BUDGETS[2]), T1_STYLES),
    "T3": (BEYOND, BUDGETS, T1_STYLES),
    "T4": (("LoRA", "SaRA"), BUDGETS, [style for style in STYLES if style not in T1_STYLES]),
}
TUNING_SEED = 1000  # none of the table's


def tuning(method: str, share: float) -> list[Cell]:
    """The tries of a method's learning rate at a budget."""
    return [Cell(method, share, TUNING_STYLE, TUNING_SEED, MIDDLE_RATE[method] * factor) for factor in TRIES]


def tries(tier: str) -> list[Cell]:
    """All tries of a tier."""
    methods, shares, _ = TIERS[tier]
    return [cell for share in shares for method in methods for cell in tuning(method, share)]


def best_rate(lines: Iterable[dict]) -> float:
    """The rate of the best of the tries."""
    return max(lines, key=tuning_score)["rate"]


def cells(tier: str, rate: Callable[[str, float], float]) -> list[Cell]:
    """The table's cells, seed by seed and style by style, so that what is there when a run stops can be compared.

    rate: of a method at a budget
    """
    methods, shares, styles = TIERS[tier]
    return [
        Cell(method, share, style, seed, rate(method, share))
        for share in shares for seed in SEEDS for style in styles for method in methods
    ]  # fmt: skip
