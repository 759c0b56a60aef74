"""A motion that the base has never seen, from 20 clips: SaRA and LoRA, in all weights and in the self-attention; and
for longer, with a penalty on forgetting the motions that the base knows and without.

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
SETTINGS, LONGER = Settings(steps=120), Settings(steps=480)
SHARE = BUDGETS[1]
WHERE = ("all layers", "self-attention")
METHODS, METHODS_LONGER = ("SaRA", "LoRA"), ("SaRA, no adjustment", "LoRA")
NEAR, PRIOR = ", kept near", 0.3  # behind a method's name: trained with a penalty of this weight
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
        left = _Left(self.new_model(), self.taught) if method.endswith(NEAR) else None
        size = sum(parameter.numel() for parameter in model.parameters())
        torch.manual_seed(seed)  # what a method begins with
        trainable, losses = trainable_of(model, method.removesuffix(NEAR), where, round(SHARE * size)), []
        count = trainable.count

        def loss_of(step: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randint(len(latents), (self.settings.batch,), generator=generator)
            context = given[rows]
            context[torch.rand(len(rows), generator=generator) < self.settings.dropout] = 0
            noised = motion_model.noised(latents[rows], generator)
            loss = motion_model.loss(model, noised, context)
            losses.append(loss.item())
            return loss if left is None else loss + PRIOR * left.of(model, noised, rows, generator)

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


class _Left:
    """How far a model has left the base's own predictions of some names' clips as the motions that the base knows."""

    def __init__(self, base: torch.nn.Module, names: Sequence[str]):
        self._base = base.requires_grad_(False)
        known = [motion_model.contexts([motion_clips.caption(name, one) for name in names])
                 for one in motion_clips.KNOWN]  # fmt: skip
        self._known = torch.stack(known)

    def of(self, model, clips: motion_model.Noised, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean squared distance for noisy clips of the names in `rows`, each as a motion of the generator's choice."""
        given = self._known[torch.randint(len(self._known), rows.shape, generator=generator), rows]
        with torch.no_grad():
            before = motion_model.predict(self._base, clips.noisy, clips.sigma, given)
        return (motion_model.predict(model, clips.noisy, clips.sigma, given) - before).square().mean()


def trainable_of(model: torch.nn.Module, method: str, where: str, budget: int) -> methods.Trainable:
    """A method of METHODS or METHODS_LONGER in one of WHERE."""
    if method != "LoRA":
        only = {} if where == WHERE[0] else {"include": _PATTERN}
        adjusted = {} if method == "SaRA" else {"adjust_at": ()}
        return methods.sara(model, budget, **only, **adjusted)
    if where == WHERE[0]:
        return methods.lora_everywhere(model, budget)
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
    """The base, and every method in every place from every seed; rates: of each method in each place."""
    wanted = [(method, where, rates[method, where]) for where in WHERE for method in METHODS]
    trained = [_job(bench, *one, seed) for seed in SEEDS for one in wanted]
    return [_job(bench, None, "none", 0.0, SEEDS[0]), *trained]


def longer_jobs(bench: Bench, rates: Mapping[tuple[str, str], float]) -> list[Job]:
    """Every method of METHODS_LONGER in all layers from every seed, also kept near the base;
    rates: of each in WHERE[0]."""
    wanted = [(method + near, WHERE[0], rates[method, WHERE[0]]) for near in ("", NEAR) for method in METHODS_LONGER]
    return [_job(bench, *one, seed) for seed in SEEDS for one in wanted]


def module_job(bench: Bench) -> Job:
    """The motion module of another model."""
    key = {"part": "motion", "module": "SD1.5", "steps of the module": motion_module.MODULE.steps}
    return Job(key, lambda: motion_module.measured(bench.known(OF_MODULE)))


def _job(bench: Bench, method: str | None, where: str, rate: float, seed: int) -> Job:
    key = {"part": "motion", "method": method, "layers": where, "share": SHARE, "rate": rate, "seed": seed}
    if method and method.endswith(NEAR):
        key["prior"] = PRIOR
    return Job(key, lambda: bench.measured(method, where, rate, seed))
