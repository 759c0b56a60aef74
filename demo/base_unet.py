"""Trains the demo's UNet (SD1.5 layout, 15.9 M weights) to write digits, as noise prediction on 4×8×8 latents."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Mapping, NamedTuple

import torch

from . import digits
from .autoencoder import LATENT_SCALE
from .checkpoint import UNET_PREFIX

LAYOUT = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1],
    "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -1, "num_heads": 8, "context_dim": 768, "use_spatial_transformer": True,
    "legacy": False,
}  # fmt: skip
AVERAGE_DECAY = 0.998
PLAIN_SHARE, CAPTION_DROPOUT = 0.7, 0.1
SAVE_EVERY = 100


class Plan(NamedTuple):
    """How long and how fast a UNet is trained; a batch is of so many pictures."""

    steps: int
    batch: int
    learning_rate: float
    warm_up: int


PLAN = Plan(steps=3500, batch=32, learning_rate=4e-4, warm_up=100)


class Examples(NamedTuple):
    """What the UNet learns from, all fp32, latents as diffusion sees them (already scaled).

    latents [k, n, 4, 8, 8]: every digit in each of k looks, plain first; labels [n];
    contexts [k, 10, 77, 768]: the encoded caption of each look and digit; empty [77, 768]: of no caption.
    """

    latents: torch.Tensor
    labels: torch.Tensor
    contexts: torch.Tensor
    empty: torch.Tensor

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [count, 4, 8, 8] and contexts [count, 77, 768] of a random batch, some captions left out."""
        looks = torch.randint(1, len(self.latents), (count,)).masked_fill(torch.rand(count) < PLAIN_SHARE, 0)
        rows = torch.randint(len(self.labels), (count,))
        latents, contexts = self.latents[looks, rows], self.contexts[looks, self.labels[rows]]
        contexts[torch.rand(count) < CAPTION_DROPOUT] = self.empty
        return latents, contexts


def new() -> torch.nn.Module:
    """An untrained UNet; ComfyUI leaves the weights of its modules uninitialised."""
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    model = UNetModel(**LAYOUT)
    for module in model.modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
    outputs = [model.out[-1]]
    outputs += [module.out_layers[-1] for module in model.modules() if isinstance(module, ResBlock)]
    outputs += [module.proj_out for module in model.modules() if isinstance(module, SpatialTransformer)]
    for module in outputs:
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
    return model


def examples_from(checkpoint_file: Path, base: digits.DigitSet) -> Examples:
    """Encode pictures and captions by the checkpoint's own autoencoder and text encoder, through ComfyUI's nodes."""
    import comfy.sd

    import nodes

    _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint_file), output_model=False)

    def latents(pictures) -> torch.Tensor:
        encoded = [vae.encode(part) for part in torch.from_numpy(pictures).split(64)]
        return torch.cat(encoded).float() * LATENT_SCALE

    def context(text: str) -> torch.Tensor:
        return nodes.CLIPTextEncode().encode(clip, text)[0][0][0][0].float()

    looks = {"": digits.paint(base.ink)}
    looks |= {f"{name} ink": digits.paint(base.ink, stroke=colour) for name, colour in digits.INKS.items()}
    with torch.inference_mode():
        encoded = Examples(
            torch.stack([latents(pictures) for pictures in looks.values()]),
            torch.from_numpy(base.labels),
            torch.stack([torch.stack([context(digits.caption(n, look)) for n in range(10)]) for look in looks]),
            context(""),
        )
    return Examples(*(tensor.clone() for tensor in encoded))


def train(
    examples, seed: int, state_file: Path, report, plan: Plan = PLAN, start: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Train, or go on from `state_file`, which is written now and then.

    examples: has a `draw` as Examples have; start: weights to begin with, by default fresh ones
    Returns the averaged weights as fp16 tensors under their names in a checkpoint.
    report(step, steps, loss) is called after every step.
    """
    from comfy.model_sampling import ModelSamplingDiscrete

    torch.manual_seed(seed)
    sigmas = ModelSamplingDiscrete().sigmas
    model = new()
    if start is not None:
        model.load_state_dict(start)

    def loss_of(_step: int) -> torch.Tensor:
        return _loss(model, *examples.draw(plan.batch), sigmas)

    return tensors(averaged(model, loss_of, state_file, report, plan))


def averaged(
    model: torch.nn.Module, loss_of: Callable[[int], torch.Tensor], state_file: Path, report, plan: Plan
) -> dict[str, torch.Tensor]:
    """Train a model, or go on from `state_file`, which is written now and then; its averaged weights.

    loss_of(step) is a scalar with graph, the steps counted from 0; report(step, steps, loss) is called after each.
    """
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=plan.steps,
                                                   pct_start=plan.warm_up / plan.steps, cycle_momentum=False)
    first = _resume(state_file, model, average, optimizer, schedule)
    for step in range(first, plan.steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        # A short memory at first, or the average would be dominated by the untrained weights.
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - decay)
        report(step + 1, plan.steps, loss.item())
        if (step + 1) % SAVE_EVERY == 0:
            _save(state_file, step + 1, model, average, optimizer, schedule)
    return average


def tensors(average: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fp16 tensors under their names in a checkpoint."""
    return {UNET_PREFIX + name: tensor.half() for name, tensor in average.items()}


def _loss(model: torch.nn.Module, latents: torch.Tensor, contexts: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the predicted noise on one batch."""
    timesteps = torch.randint(len(sigmas), (len(latents),))
    sigma, noise = sigmas[timesteps].view(-1, 1, 1, 1), torch.randn_like(latents)
    noisy = (latents + sigma * noise) / (sigma**2 + 1).sqrt()
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(noisy, timesteps, contexts)
    return (predicted.float() - noise).square().mean()


def _save(state_file: Path, step: int, model, average, optimizer, schedule) -> None:
    state = {
        "step": step, "model": model.state_dict(), "average": average, "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(), "random": torch.get_rng_state(),
    }  # fmt: skip
    state_file.parent.mkdir(parents=True, exist_ok=True)
    partial = state_file.with_name(state_file.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, state_file)


def _resume(state_file: Path, model, average, optimizer, schedule) -> int:
    """Fill everything from the file, if it exists; returns the step to go on with."""
    if not state_file.exists():
        return 0
    state = torch.load(state_file, weights_only=True)
    model.load_state_dict(state["model"])
    average.update(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"])
    return state["step"]
