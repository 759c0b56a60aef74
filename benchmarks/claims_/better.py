"""What came out on top of the candidates (candidates.py) in the table's styles, beside the table's own cells.

None of it is tuned anew: each has the rate that its method has in the table, at its budget.
"""

from collections.abc import Mapping

from .plan import TIERS
from .protocol import SEEDS, Cell

# What to call it → method and options. LoRA is kept near the base as well: what the penalty alone is worth.
BETTER: dict[str, tuple[str, dict[str, object]]] = {
    "LoRA": ("LoRA", {}),
    "SaRA": ("SaRA", {}),
    "SaRA per layer, kept near": ("SaRA", {"adjust_at": (), "per_layer": True, "prior": 0.3}),
    "SaRA, no adjustment": ("SaRA", {"adjust_at": ()}),
    "SaRA, kept near": ("SaRA", {"adjust_at": (), "prior": 0.1}),
    "LoRA, kept near": ("LoRA", {"prior": 0.3}),
}
RATED = tuple(dict.fromkeys(method for method, _ in BETTER.values()))


def cells(tier: str, share: float, rates: Mapping[tuple[str, float], float]) -> list[Cell]:
    """BETTER in every style of a tier at one of its budgets, one after the other, for the first two are the table's own
    and may be there already.

    rates: learning rates of RATED, by method and budget
    """
    styles = TIERS[tier][2]
    return [
        Cell(method, share, style, seed, rates[method, share], tuple(options.items()))
        for method, options in BETTER.values() for seed in SEEDS for style in styles
    ]  # fmt: skip
