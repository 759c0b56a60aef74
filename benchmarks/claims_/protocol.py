"""What is compared, and how the comparison is tuned: fixed before the table is run, and not changed after.

- One style tunes (TUNING_STYLE); the others are the table. Every method gets the same number of tries of its learning
  rate, by the same search around the rate that its authors give (tuning.py); the best by the tuning style's score is
  its rate in the table, at every budget its own.
- Names that are held out (names.is_held_out) are what pictures are drawn of and judged on; nothing is trained on them,
  the base's own training apart, which has all of Noto's.
- Primary figures: KID and text score of pictures with the trigger, drift of pictures without; paired differences to
  LoRA's for each style and seed. The rest is secondary.
"""

from typing import NamedTuple

from . import icon_sets

TUNING_STYLE = icon_sets.TWEMOJI.name
STYLES = (icon_sets.OPENMOJI.name, icon_sets.FLUENT.name, icon_sets.FXEMOJI.name, icon_sets.EMOJIONE.name)
T1_STYLES = STYLES[:2] + STYLES[3:]
SEEDS = (0, 1, 2)
PICTURES = 300  # of a style, at most, for training
JUDGED = 250  # pictures of held-out names, at most
# Shares of the UNet's weights: those of 5, 20 and 50 million in SD1.5's.
BUDGETS = (0.0058, 0.023, 0.058)
REFERENCE = "LoRA"
PRIMARY = {"kid": "lower", "text": "higher", "drift": "lower"}
# In the middle of each method's first tries: PEFT's and the papers' own rates.
MIDDLE_RATE = {
    "full": 1e-5, "LoRA": 1e-3, "LoRA everywhere": 1e-3, "AdaptFormer": 1e-3, "LT-SFT": 3e-4, "SaRA": 1e-3,
    "SHiRA": 1e-3, "Super-Tuning": 1e-3, "DoRA": 1e-3,
}  # fmt: skip


class Cell(NamedTuple):
    """One training and what is measured of it; options are a method's, for ablations."""

    method: str
    share: float
    style: str
    seed: int
    rate: float
    options: tuple[tuple[str, object], ...] = ()


def tuning_score(measured: dict[str, float]) -> float:
    """Higher is better: the style as near as it can be, with the names kept and nothing lost without the trigger.

    KID is in thousandths, of the order of 100 for another style; text and drift are cosines.
    """
    return measured["text"] - measured["kid"] / 500 - measured["drift"]
