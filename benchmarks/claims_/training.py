"""One training of the base model by one method, the same for all: pictures, noise, noise levels and batches come from
the seed alone, so that runs of different methods can be compared pair by pair."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from . import methods

LT_SFT = "LT-SFT"
CHOSEN_BY = 32  # pictures whose gradient a rule chooses by


@dataclass(frozen=True)
class Settings:
    """steps: of a run, LT-SFT's two as long as one each; batch: pictures in a step; dropout: share of captions that are
    left out; clip: largest norm of a gradient. The rate falls by a cosine, as in the paper."""

    steps: int = 400
    batch: int = 8
    dropout: float = 0.1
    clip: float = 1.0


class Task(NamedTuple):
    """latents [n, 4, 8, 8] as diffusion sees them, contexts [n, 77, 768] of their captions with the trigger, empty
    [77, 768] of no caption."""

    latents: torch.Tensor
    contexts: torch.Tensor
    empty: torch.Tensor


class Trained(NamedTuple):
    """The model; how many values were trained; the losses of all steps."""

    model: torch.nn.Module
    count: int
    losses: list[float]


def train(
    new_model: Callable[[], torch.nn.Module], method: str, budget: int, rate: float, task: Task, seed: int,
    settings: Settings = Settings(), **options,
) -> Trained:  # fmt: skip
    """Train a base model, a new one by `new_model`, by a method of methods.METHODS or LT-SFT; options are the method's.

    rate: AdamW's learning rate
    """
    model = new_model().requires_grad_(False)
    if method == LT_SFT:
        tuned = train(new_model, "full", budget, rate, task, seed, settings).model
        before, after = dict(model.named_parameters()), dict(tuned.named_parameters())
        changes = {name: (after[name].detach() - before[name]).abs() for name in before}
        method, options = "SaRA", {"rule": methods.largest_of(changes)}
    if options.get("rule") == "gradient":
        chosen_by = replace(settings, batch=CHOSEN_BY)
        options = {**options, "loss": lambda: _loss(model, task, chosen_by, _generator(seed, settings.steps))}
    torch.manual_seed(seed)  # what a method begins with
    trainable = methods.METHODS[method](model, budget, **options)
    optimizer = torch.optim.AdamW(trainable.parameters, rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    count, losses = trainable.count, []
    for step in range(settings.steps):
        loss = _loss(model, task, settings, _generator(seed, step))
        optimizer.zero_grad()
        loss.backward()
        trainable.before_step(step, settings.steps, optimizer)
        torch.nn.utils.clip_grad_norm_(trainable.parameters, settings.clip)
        optimizer.step()
        schedule.step()
        trainable.after_step()
        losses.append(loss.item())
    return Trained(model.eval(), count, losses)


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _loss(model: torch.nn.Module, task: Task, settings: Settings, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of the predicted noise on a batch that the generator alone decides."""
    rows = torch.randint(len(task.latents), (settings.batch,), generator=generator)
    latents, contexts = task.latents[rows], task.contexts[rows].float()
    contexts[torch.rand(settings.batch, generator=generator) < settings.dropout] = task.empty
    timesteps = torch.randint(1000, (settings.batch,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    sigma = sigmas()[timesteps].view(-1, 1, 1, 1)
    noisy = (latents + sigma * noise) / (sigma**2 + 1).sqrt()
    return (model(noisy, timesteps, contexts) - noise).square().mean()


def sigmas() -> torch.Tensor:
    """Noise levels of SD1.5's thousand steps, relative to the picture."""
    from comfy.model_sampling import ModelSamplingDiscrete

    return ModelSamplingDiscrete().sigmas
