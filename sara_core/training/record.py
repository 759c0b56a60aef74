"""What a run writes down of itself: the settings that decide its numbers, and what its delta says of how it was made.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..data.held_out import HeldOut
from ..delta import metadata as keys
from ..errors import TrainingError
from ..files.saved_state import whole_number
from ..numbers import checked, read_list
from ..selection.rules import RULES
from ..selection.select import Selection
from ..wording import Sentence
from . import snapshot
from .settings import SETTINGS
from .words import Words


MOST_PROCESSES = 4096
# What a snapshot leaves out that was written before there were ranges of noise.
BEFORE_RANGES = {"noise_from": 0.0, "noise_to": 0.0}


@dataclass(frozen=True)
class RunSettings:
    """All that decides a run's numbers, under the names that snapshots and deltas have it by. Runs of equal settings
    over the same base are equal bit for bit on the CPU of one machine, and only such a run is resumed; what may differ
    (checkpointing, snapshots, pictures) is not here. A host that has more such settings derives from this. None has a
    default: those that people meet, with their ranges, are in settings.py.

    selection: what was asked for, keyword of `select` → value
    layers, include, exclude: preset and patterns of names.patterns.Choice
    steps: optimizer steps; batch_size: images per forward pass, over all processes together
    grad_accumulation: forward passes per step
    optimizer: one of optimizer_choice.OPTIMIZERS; weight_decay: of Δ, 0 = off
    learning_rate: 0 = the paper's; schedule, warmup_steps: schedule.py
    max_grad_norm: of the gradient of Δ, 0 = never clipped
    low_rank_weight: λ of low_rank.py, 0 = off
    adjust_at: parts of the run, 0 … 1, after which the support is adjusted; ignored where the selection has no θ
    noise_levels, noise_level_mean, noise_level_std: data.noise_levels.NoiseLevels; "uniform" ignores the last two
    noise_from, noise_to: the least and the most σ that is trained, 0 = no end
    min_snr_gamma: 0 = off; caption_dropout: part of the images, 0 … 1 (both: data.denoising_loss.DenoisingLoss)
    prior_weight: of the class images; ignored without any
    seed: of all that is drawn but the selection, which has its own
    data: digest of images and captions

    Raises TrainingError, naming it, for a number that is none or is out of its range.
    """

    selection: dict
    layers: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    steps: int
    batch_size: int
    grad_accumulation: int
    optimizer: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    low_rank_weight: float
    adjust_at: list[float]
    noise_levels: str
    noise_level_mean: float
    noise_level_std: float
    noise_from: float
    noise_to: float
    min_snr_gamma: float
    caption_dropout: float
    prior_weight: float
    seed: int
    data: str

    def __post_init__(self):
        for name, setting in SETTINGS.items():
            if setting.is_number and name in self.__dataclass_fields__:
                # Several processes share a batch, each of which may have as much as a setting allows.
                most = setting.most * MOST_PROCESSES if name == "batch_size" else setting.most
                value = checked(
                    getattr(self, name), name, setting.least, most, whole=setting.is_whole, error=TrainingError
                )
                object.__setattr__(self, name, value)

    @property
    def samples_per_step(self) -> int:
        """Images per optimizer step, class images not counted."""
        return self.batch_size * self.grad_accumulation

    def adjust_after_steps(self) -> tuple[int, ...]:
        """The steps after which the support is adjusted."""
        return tuple(round(part * self.steps) for part in self.adjust_at)

    def as_written_now(self, state: Mapping, saved: Mapping) -> tuple[Mapping, Mapping]:
        """State and settings of a snapshot, where an older version wrote them in another form, in today's form."""
        return state, {**BEFORE_RANGES, **saved}


def selection_asked_for(rule: str, amount: str, value: float, per_layer: bool, seed: int) -> dict:
    """The keywords of `select`, as RunSettings.selection. amount: "threshold", "count" or "density"."""
    selection = {"rule": rule, amount: value}
    if per_layer:
        selection["per_layer"] = True
    if RULES[rule].takes_seed:
        selection["seed"] = seed
    return selection


def parts_of_a_run(text: str, words: Words = Words()) -> list[float]:
    """"0.5" or "0.3, 0.6" → the numbers, each above 0 and below 1. Raises TrainingError for anything else."""
    try:
        parts = sorted(read_list(text, "it", TrainingError)) if text.strip(" ,") else []
    except TrainingError:
        parts = [0.0]
    if not all(0 < part < 1 for part in parts):
        raise TrainingError(Sentence(
            "{setting} is '{text}': it takes parts of the run between 0 and 1, like 0.5 for the middle, separated "
            "by commas; empty switches the adjustment off.", setting=words.setting("adjust_at"), text=text,
        ))  # fmt: skip
    return parts


def metadata(
    settings: RunSettings, selection: Selection, learning_rate: float, steps: int, plan: Sequence[int], images: int,
    fingerprint: str, held_out: HeldOut | None = None,
) -> dict[str, str]:
    """What a delta says of the run that it comes from.

    learning_rate: the one that was trained with; steps: how many are done; plan: as of loop.Training, said where it was
    another; images: how many there were, class images not counted; fingerprint: of the trained weights' values before
    the training (Store.base_fingerprint); held_out: pictures beside these, with their losses
    """
    selected = {**selection.rule, "theta": selection.theta, "elements": selection.count, "of": selection.candidates}
    trained = {**asdict(settings), "learning_rate": learning_rate, "steps": steps, "images": images}
    if list(plan) != [steps]:
        trained["planned_steps"] = list(plan)
    if held_out is not None:
        trained["held_out"] = {"images": held_out.images, "losses": held_out.losses}
    return {
        keys.SELECTION: json.dumps(selected),
        keys.TRAINING: json.dumps(trained),
        keys.BASE: fingerprint,
    }


def resumed_state(path: str | os.PathLike, settings: RunSettings, words: Words = Words()) -> Mapping:
    """The state in the snapshot of a run of the same settings, but for `steps`: a run may be trained on beyond the end
    that was planned for it, or end before.

    Raises DeltaError for a file that is no whole snapshot, TrainingError, with all that differs, for another run's, and
    if more steps are done than there are to be.
    """
    state, saved = settings.as_written_now(*snapshot.load(path, words))
    if differing := snapshot.differences(saved, {**asdict(settings), "steps": saved.get("steps")}):
        raise TrainingError(Sentence(
            "The run of {name} cannot go on, because {reason} ({differing}). {remedy}", name=Path(path).name,
            reason=words.other_run, differing="; ".join(differing), remedy=words.same_run,
        ))  # fmt: skip
    planned = whole_number(saved.get("steps"), "its number of steps", 1, SETTINGS["steps"].most)
    done = whole_number(state.get("step"), "its number of steps done", 0, SETTINGS["steps"].most)
    if settings.steps < done:
        raise TrainingError(Sentence(
            "The run of {name} has done {done} steps already, and {setting} is {steps}: set it to {done} or more.",
            name=Path(path).name, done=done, setting=words.setting("steps"), steps=settings.steps,
        ))  # fmt: skip
    # Older snapshots say nothing of how the run was planned: as their settings do.
    return {"plan": [planned], "adjust_at": replace(settings, steps=planned).adjust_after_steps(), **state}
