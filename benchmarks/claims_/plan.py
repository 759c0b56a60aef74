"""Which cells a tier of the table has, and the cells that tune its learning rates, as the protocol says."""

from collections.abc import Iterable, Mapping

from .protocol import BUDGETS, MIDDLE_RATE, SEEDS, STYLES, T1_STYLES, TUNING_STYLE, Cell, tuning_score
from .tuning import TRIES

PAPERS = ("full", "LoRA", "AdaptFormer", "LT-SFT", "SaRA")
BEYOND = ("LoRA everywhere", "SHiRA", "Super-Tuning", "DoRA")
# Tier → methods, budgets, styles, each of which can be published alone.
TIERS = {
    "T1": (PAPERS, BUDGETS[1:2], T1_STYLES),
    # Full fine-tuning has no budget: its cells are the first tier's.
    "T2": (tuple(method for method in PAPERS if method != "full"), (BUDGETS[0], BUDGETS[2]), T1_STYLES),
    "T3": (BEYOND, BUDGETS, T1_STYLES),
    "T4": (("LoRA", "SaRA"), BUDGETS, [style for style in STYLES if style not in T1_STYLES]),
}
TUNING_SEED = 1000  # none of the table's


def tuning(method: str, share: float, half: int) -> Cell:
    """A try of a method's learning rate at a budget, so many half powers of ten above its middle one."""
    return Cell(method, share, TUNING_STYLE, TUNING_SEED, rate(method, half))


def rate(method: str, half: int) -> float:
    """A learning rate of a method, so many half powers of ten above its middle one."""
    return MIDDLE_RATE[method] * 10 ** (half / 2)


def tuned(tier: str) -> list[tuple[str, float]]:
    """The methods and budgets of a tier, each of which has a learning rate of its own."""
    methods, shares, _ = TIERS[tier]
    return [(method, share) for share in shares for method in methods]


def styles(tier: str) -> list[str]:
    """The styles that a tier's tuning and cells are of, the former's first."""
    return [TUNING_STYLE, *TIERS[tier][2]]


def best_known_rate(known: Iterable[dict], method: str, share: float) -> float:
    """The best of the tries among lines; the method's middle rate as long as its search has not come to its end."""
    own = {"method": method, "share": share, "style": TUNING_STYLE, "seed": TUNING_SEED, "options": []}
    tries = [line for line in known if all(line.get(name) == value for name, value in own.items())]
    return max(tries, key=tuning_score)["rate"] if len(tries) >= TRIES else MIDDLE_RATE[method]


def cells(tier: str, rates: Mapping[tuple[str, float], float]) -> list[Cell]:
    """The table's cells, seed by seed and style by style, so that what is there when a run stops can be compared.

    rates: of each method at each budget that is to be there
    """
    methods, shares, styles = TIERS[tier]
    return [
        Cell(method, share, style, seed, rates[method, share])
        for share in shares for seed in SEEDS for style in styles for method in methods if (method, share) in rates
    ]  # fmt: skip
