"""A motion that the base has never seen, from 20 clips: SaRA and LoRA, in all weights and in the self-attention.

Wan's layers look at space and time together, so none is about time only; the self-attention is the one place where a
frame sees the others, and so what comes nearest to temporal layers. Every name of a layer that has "self_attn" in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache

import numpy as np
import torch

from . import methods, motion_clips, motion_judge, motion_model, motion_module
from .contexts import digest
from .lines import Job
from .protocol import BUDGETS, SEEDS
from .training import Settings, descend

CLIPS, JUDGED, KEPT = 20, 30, 8  # clips taught, of the new motion judged, and of each old one
OF_MODULE = 40  # icons that the motion module's picture model knows
SETTINGS = Settings(steps=120)
SHARE = BUDGETS[1]
WHERE = ("all layers", "self-attention")
METHODS = ("SaRA", "LoRA")
MIDDLE_RATE = 1e-2  # high, for the run is short
TUNING_SEED = max(SEEDS) + 1
FIGURES = ("new", "off", "kept", "named", "drift")
_PATTERN = "self_attn"


class Bench:
    """icons: name → uint8 [ICON, ICON, 3] of what the base knows; new_model: makes the base, untouched, each time"""

    def __init__(
        self, icons: dict[str, np.ndarray], new_model: Callable[[], torch.nn.Module] = motion_model.trained,
        settings: Settings = SETTINGS, judged: int = JUDGED,
    ):  # fmt: skip
        self.icons, self.new_model, self.settings = icons, new_model, settings
        names = list(icons)
        # Clips to learn from, clips to tune by and clips to judge by are of different things.
        self.taught, self.tuned_by = names[:CLIPS], names[CLIPS : CLIPS + judged]
        self.judged_by = names[CLIPS + judged : CLIPS + 2 * judged]

    @property
    def made_with(self) -> dict:
        """What its lines depend on."""
        return {"motions": digest(motion_model.FILE), "judged": len(self.judged_by), **asdict(self.settings)}

    def measured(self, method: str | None, where: str, rate: float, seed: int) -> dict:
        """Train and measure; without a method the base as it is."""
        model, count, losses = self.new_model().requires_grad_(False), 0, []
        if method is not None:
            count, losses = self._train(model, method, where, rate, seed)
        asked = self.tuned_by if seed == TUNING_SEED else self.judged_by
        figures = self.figures(model.eval(), asked)
        return {"trained": count, "loss": float(np.mean(losses[-50:])) if losses else None, **figures}

    def _train(self, model, method: str, where: str, rate: float, seed: int) -> tuple[int, list[float]]:
        made = motion_clips.clips(self.icons, [(name, motion_clips.NEW) for name in self.taught], seed=0)
        latents, given = motion_model.folded(made.frames), motion_model.contexts(made.captions)
        size = sum(parameter.numel() for parameter in model.parameters())
        torch.manual_seed(seed)  # what a method begins with
        trainable, losses = trainable_of(model, method, where, round(SHARE * size)), []
        count = trainable.count

        def loss_of(step: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randint(len(latents), (self.settings.batch,), generator=generator)
            context = given[rows]
            context[torch.rand(len(rows), generator=generator) < self.settings.dropout] = 0
            loss = motion_model.loss(model, latents[rows], context, generator)
            losses.append(loss.item())
            return loss

        descend(trainable, loss_of, rate, self.settings)
        return count, losses

    def figures(self, model: torch.nn.Module, asked: Sequence[str]) -> dict[str, float]:
        """new, kept: share of clips with the new motion, and with an old one, whose track is the one asked for
        off: mean distance in pixels between the new motion's tracks and its way
        named: share of clips with an old motion whose thing is that asked for, among 10
        drift: root mean square between these clips and the base's own, of a range of 1
        """
        old = tuple((name, motion) for motion in motion_clips.KNOWN for name in asked[:KEPT])
        new = self._drawn(model, [(name, motion_clips.NEW) for name in asked], seed=1)
        clips, before = self._drawn(model, old, seed=2), self._base_drawn(old)
        return {
            "new": motion_judge.share(new, motion_clips.NEW),
            "off": motion_judge.off(new, motion_clips.NEW),
            "kept": motion_judge.share(clips, [motion for _, motion in old]),
            "named": motion_judge.named(clips, self.icons, [name for name, _ in old]),
            "drift": (clips - before).square().mean().sqrt().item(),
        }

    def known(self, count: int) -> dict[str, np.ndarray]:
        """The first icons."""
        return dict(list(self.icons.items())[:count])

    def _drawn(self, model, wanted: Sequence[tuple[str, str]], seed: int) -> torch.Tensor:
        return motion_model.draw(model, [motion_clips.caption(*one) for one in wanted], seed)

    @lru_cache
    def _base_drawn(self, wanted: tuple[tuple[str, str], ...]) -> torch.Tensor:
        return self._drawn(self.new_model(), wanted, seed=2)


def trainable_of(model: torch.nn.Module, method: str, where: str, budget: int) -> methods.Trainable:
    """A method of METHODS in one of WHERE."""
    if where == WHERE[0]:
        return {"SaRA": methods.sara, "LoRA": methods.lora_everywhere}[method](model, budget)
    if method == "SaRA":
        return methods.sara(model, budget, include=_PATTERN)
    return methods.lora_on(model, [name for name in methods.layers(model) if _PATTERN in name], budget)


def tuning_job(bench: Bench, method: str, where: str, half: int) -> Job:
    """A try of a method's rate, so many half powers of ten above the middle one."""
    return _job(bench, method, where, rate(half), TUNING_SEED)


def rate(half: int) -> float:
    """A learning rate, so many half powers of ten above the middle one."""
    return MIDDLE_RATE * 10 ** (half / 2)


def tuning_score(measured: dict) -> float:
    """Higher is better: the new motion drawn when asked for; pixels tell equal shares apart. What is kept does not
    count, or a rate at which nothing is learnt would be the best."""
    return measured["new"] - measured["off"] / 100


def jobs(bench: Bench, rates: Mapping[tuple[str, str], float]) -> list[Job]:
    """The base, every method in every place from every seed, and the motion module of another model;
    rates: of each method in each place."""
    wanted = [(method, where, rates[method, where]) for where in WHERE for method in METHODS]
    trained = [_job(bench, *one, seed) for seed in SEEDS for one in wanted]
    module = Job({"part": "motion", "module": "SD1.5"}, lambda: motion_module.measured(bench.known(OF_MODULE)))
    return [_job(bench, None, "none", 0.0, SEEDS[0]), *trained, module]


def _job(bench: Bench, method: str | None, where: str, rate: float, seed: int) -> Job:
    key = {"part": "motion", "method": method, "layers": where, "share": SHARE, "rate": rate, "seed": seed}
    return Job(key, lambda: bench.measured(method, where, rate, seed))
