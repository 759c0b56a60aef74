"""The settings of a training as people meet them, in whatever host: default, range, and what each does in a sentence
or two, which a host shows as a tooltip or as help."""

from collections.abc import Collection
from typing import Any, NamedTuple

from ..data.noise_levels import AUTOMATIC, DISTRIBUTIONS, RANGES
from ..names.patterns import ALL_LAYERS, PRESETS
from ..selection.rules import RULES
from .optimizer_choice import OPTIMIZERS
from .schedule import SCHEDULES


class Setting(NamedTuple):
    """What a person may set.

    default: of the setting's type; help: whole sentences
    least, most: of a number, both included; choices: of a text that is one of several; of a registry, with what was
        added to it since
    """

    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    choices: Collection[str] = ()

    @property
    def is_number(self) -> bool:
        """Whether it is one with a range."""
        return self.least is not None

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole number."""
        return isinstance(self.default, int)


WHICH_WEIGHTS = {
    "count": Setting(5_000_000, "Number of weights that are trained, smallest first.", 1, 2**31 - 1),
    "threshold": Setting(
        0.002, "Weights whose size is below this are trained. The paper uses 0.002, 0.0008 and 0.0002 for Stable "
        "Diffusion.", 0.0, 10.0,
    ),
    "layers": Setting(
        ALL_LAYERS, "Which layers are trained at all. 'no text cross-attention' leaves what words mean alone; "
        "'temporal layers only' is for video models that have such layers.", choices=PRESETS.keys(),
    ),
    "include": Setting(
        "", "Train only weights whose name contains one of these words (separated by commas), like attn2. bias and "
        "norm train those too. Empty: all Linear and Conv weights.",
    ),
    "exclude": Setting("", "Leave out weights whose name contains one of these words (separated by commas)."),
    "selection_rule": Setting(
        "smallest", "smallest is SaRA. The others are for comparison: largest or random weights, or those that the "
        "training images' gradient finds most important (SNIP).", choices=RULES.keys(),
    ),
    "per_layer": Setting(False, "Take the density from every layer alike, instead of from the whole model."),
}  # fmt: skip
COURSE = {
    "steps": Setting(500, "Number of training steps.", 1, 1_000_000),
    "batch_size": Setting(1, "Images per forward pass; class images come on top, as many again.", 1, 1024),
    "grad_accumulation": Setting(1, "Forward passes per step: a larger batch without more memory.", 1, 1024),
    "learning_rate": Setting(
        0.0, "0 takes the paper's rule: the smaller the trained weights, the higher the rate.", 0.0, 1.0
    ),
    "optimizer": Setting(
        "AdamW", "AdamW is the paper's. The 8-bit one saves memory and needs bitsandbytes or torchao.",
        choices=OPTIMIZERS,
    ),
    "schedule": Setting(
        "constant", "How the learning rate goes: it stays, falls along a cosine (the paper's), or falls evenly.",
        choices=SCHEDULES,
    ),
    "warmup_steps": Setting(0, "The learning rate rises from 0 over this many steps.", 0, 1_000_000),
    "weight_decay": Setting(
        0.0, "Pulls the changes towards zero, that is the model towards what it was. 0 is off.", 0.0, 10.0
    ),
    "max_grad_norm": Setting(
        1.0, "Gradients larger than this are scaled down to it. 0 switches that off.", 0.0, 1000.0
    ),
    "seed": Setting(0, "Order of the images, noise and noise levels.", 0, 2**63 - 1),
}  # fmt: skip
METHOD = {
    "adjust_at": Setting(
        "0.5", "After these parts of the run (0.5 = the middle; several with commas) the weights that have grown out "
        "of the small ones are finished, and only the others train on. Empty switches that off: try it where pictures "
        "show too little of what is to be learned.",
    ),
    "low_rank_weight": Setting(
        0.0, "Strength of the low-rank loss, which keeps the trained weights simple: pictures show less of what is "
        "learned. 0 is off, and right to begin with; then try 0.00005. (The paper says 0.005, its scripts 0.0005.)",
        0.0, 1000.0,
    ),
}  # fmt: skip
NOISE_AND_CAPTIONS = {
    "noise_levels": Setting(
        "uniform", "How often each noise level is trained: all alike, or the middle ones more (as SD3 and Flux were).",
        choices=DISTRIBUTIONS,
    ),
    "noise_level_mean": Setting(
        0.0, "Logit-normal only: above 0 trains much noise (composition) more, below 0 little (details).", -5.0, 5.0
    ),
    "noise_level_std": Setting(1.0, "Logit-normal only: smaller keeps closer to the preferred level.", 0.1, 5.0),
    "min_snr_gamma": Setting(
        0.0, "Min-SNR weighting gives low noise less weight; 5 is usual, 0 is off. For SD1.5, SD2, SDXL.", 0.0, 100.0
    ),
    "noise_range": Setting(
        AUTOMATIC, "Which noise levels are trained: for Wan 2.2, those of the expert that is trained. automatic trains "
        "all, and of models that predict the clean picture none of almost no noise.", choices=RANGES.keys(),
    ),
    "noise_from": Setting(
        0.0, "The least noise that is trained, as sigma (0 to 1 for Flux, Wan and the like). 0: as noise_range says.",
        0.0, 1000.0,
    ),
    "noise_to": Setting(
        0.0, "The most noise that is trained, as sigma. 0: as noise_range says.", 0.0, 1000.0
    ),
    "caption_dropout": Setting(0.0, "Part of the images that are trained without their caption.", 0.0, 1.0),
}  # fmt: skip
CLASS_IMAGES = {
    "prior_weight": Setting(
        1.0, "How much the class pictures count beside the subject's; with class captions alone, how strongly the "
        "model is kept as it was with these.", 0.0, 100.0,
    ),
}
SNAPSHOTS = {
    "snapshot_every": Setting(
        500, "A snapshot after so many steps, and before the last step if there is none yet, from which a run can be "
        "resumed exactly. When a run is stopped it always leaves one. 0: only then.", 0, 1_000_000,
    ),
    "snapshots_kept": Setting(
        1, "How many of a run's snapshots are kept. They go when the finished delta is on the disk.", 1, 1000
    ),
}  # fmt: skip
SETTINGS = {**WHICH_WEIGHTS, **COURSE, **METHOD, **NOISE_AND_CAPTIONS, **CLASS_IMAGES, **SNAPSHOTS}
