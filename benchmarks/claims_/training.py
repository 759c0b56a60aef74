"""One training of the base model by one method, the same for all: pictures, noise, noise levels and batches come from
the seed alone, so that runs of different methods can be compared pair by pair."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch

from sara_core.selection.rules import Rule

from . import choices, methods

LT_SFT = "LT-SFT"
TIMES = 1000
Levels = Callable[[torch.Tensor], torch.Tensor]
# Timesteps of numbers that are even in 0..1, by name.
LEVELS: dict[str, Levels] = {
    "all": lambda u: (u * TIMES).long(),
    "low": lambda u: (u**1.5 * TIMES).long(),
    "middle": lambda u: ((u + (2 * math.pi * u).sin() / (2 * math.pi) * 0.7) * TIMES).long().clamp(0, TIMES - 1),
}


@dataclass(frozen=True)
class Settings:
    """steps: of a run, LT-SFT's two as long as one each; batch: pictures in a step; dropout: share of captions that are
    left out; clip: largest norm of a gradient. The rate falls by a cosine, as in the paper."""

    steps: int = 400
    batch: int = 8
    dropout: float = 0.1
    clip: float = 1.0


class Task(NamedTuple):
    """latents [n, 4, 8, 8] as diffusion sees them, contexts [n, 77, 768] of their captions with the trigger and plain
    of those without, empty [77, 768] of no caption; all on the device that is trained on."""

    latents: torch.Tensor
    contexts: torch.Tensor
    plain: torch.Tensor
    empty: torch.Tensor


class Trained(NamedTuple):
    """The model; how many values were trained; the losses of all steps."""

    model: torch.nn.Module
    count: int
    losses: list[float]


def train(
    new_model: Callable[[], torch.nn.Module], method: str, budget: int, rate: float, task: Task, seed: int,
    settings: Settings = Settings(), levels: str = "all", prior: float = 0.0, chosen_by: int = 32, **options,
) -> Trained:  # fmt: skip
    """Train a base model, a new one by `new_model`, by a method of methods.METHODS or LT-SFT; options are the method's.

    rate: AdamW's learning rate
    levels: which of LEVELS the noise is drawn by
    prior: weight of a penalty on leaving the base's own predictions for captions without the trigger; a step then
        takes two passes more
    chosen_by: pictures whose gradient a rule chooses by
    """
    model = new_model().requires_grad_(False)
    if method == LT_SFT:
        tuned = train(new_model, "full", budget, rate, task, seed, settings).model
        before, after = dict(model.named_parameters()), dict(tuned.named_parameters())
        changes = {name: (after[name].detach() - before[name]).abs() for name in before}
        method, options = "SaRA", {"rule": choices.largest_of(changes), "adjust_at": ()}
    noise = LEVELS[levels]
    options = _with_rule(options, model, task, seed, settings, chosen_by)
    torch.manual_seed(seed)  # what a method begins with
    trainable = methods.METHODS[method](model, budget, **options)
    base = new_model().requires_grad_(False).eval() if prior else None
    count, losses = trainable.count, []

    def loss_of(step: int) -> torch.Tensor:
        batch = _batch(task, settings, _generator(seed, step), noise)
        loss = _loss(model, batch)
        losses.append(loss.detach())  # a number would have to be waited for
        return loss if base is None else loss + prior * _left(model, base, batch, task.plain)

    descend(trainable, loss_of, rate, settings)
    return Trained(model.eval(), count, torch.stack(losses).tolist())


def descend(
    trainable: methods.Trainable, loss_of: Callable[[int], torch.Tensor], rate: float, settings: Settings
) -> None:
    """Take the steps of a training; loss_of(step) is a scalar with graph, the steps counted from 0."""
    optimizer = torch.optim.AdamW(trainable.parameters, rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for step in range(settings.steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        trainable.before_step(step, settings.steps, optimizer)
        torch.nn.utils.clip_grad_norm_(trainable.parameters, settings.clip)
        optimizer.step()
        schedule.step()
        trainable.after_step()
    trainable.finish()


def _with_rule(
    options: dict, model: torch.nn.Module, task: Task, seed: int, settings: Settings, chosen_by: int
) -> dict:
    """The options with a rule's name exchanged for what it needs of this task."""

    def loss(pictures: int = chosen_by, number: int = 0) -> torch.Tensor:
        whole = replace(settings, batch=pictures, dropout=0.0)
        return _loss(model, _batch(task, whole, _generator(seed, settings.steps + number), LEVELS["all"]))

    match options.get("rule"):
        case "gradient":
            return {**options, "loss": loss}
        case "steep":
            return {**options, "rule": Rule(choices.steepest, needs_loss=True), "loss": loss}
        case "steep and small":
            return {**options, "rule": Rule(choices.steepest_of_small, needs_loss=True), "loss": loss}
        case "steady":
            each = (partial(loss, settings.batch, number) for number in range(max(chosen_by // settings.batch, 1)))
            return {**options, "rule": choices.steadiest(model, each)}
        case "small effect":
            return {**options, "rule": choices.of_small_effect(model, loss)}
    return options


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Batch(NamedTuple):
    """noisy, noise [n, 4, 8, 8]; timesteps [n]; contexts [n, 77, 768]; rows [n]: which of the task's pictures."""

    noisy: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    contexts: torch.Tensor
    rows: torch.Tensor


def _batch(task: Task, settings: Settings, generator: torch.Generator, levels: Levels) -> Batch:
    """A batch that the generator alone decides: it draws on the CPU, so that every device has the same."""
    rows = torch.randint(len(task.latents), (settings.batch,), generator=generator)
    left_out = torch.rand(settings.batch, generator=generator) < settings.dropout
    timesteps = levels(torch.rand(settings.batch, generator=generator))
    noise = torch.randn(settings.batch, *task.latents.shape[1:], generator=generator)
    drawn = rows, left_out, timesteps, noise, sigmas()[timesteps].view(-1, 1, 1, 1)
    rows, left_out, timesteps, noise, sigma = (one.to(task.latents.device, non_blocking=True) for one in drawn)
    latents, contexts = task.latents[rows], task.contexts[rows].float()
    contexts = torch.where(left_out.view(-1, 1, 1), task.empty, contexts)
    return Batch((latents + sigma * noise) / (sigma**2 + 1).sqrt(), noise, timesteps, contexts, rows)


def _loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean squared error of the predicted noise."""
    return (model(batch.noisy, batch.timesteps, batch.contexts) - batch.noise).square().mean()


def _left(model: torch.nn.Module, base: torch.nn.Module, batch: Batch, plain: torch.Tensor) -> torch.Tensor:
    """Mean squared distance from the base's predictions, for the same noisy pictures and captions without a trigger."""
    given = batch.noisy, batch.timesteps, plain[batch.rows].float()
    with torch.no_grad():
        before = base(*given)
    return (model(*given) - before).square().mean()


@cache
def sigmas() -> torch.Tensor:
    """Noise levels of SD1.5's thousand steps, relative to the picture."""
    from comfy.model_sampling import ModelSamplingDiscrete

    return ModelSamplingDiscrete().sigmas
