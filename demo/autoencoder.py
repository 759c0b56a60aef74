"""Trains the demo's autoencoder: ComfyUI's TAESD (64×64 RGB ↔ 4×8×8 latents) on digits in all colours."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from . import digits
from .checkpoint import AUTOENCODER_PREFIX

STEPS, BATCH, LEARNING_RATE = 1500, 16, 1.5e-3
PLAIN_SHARE, INK_SHARE = 0.3, 0.2
LATENT_NOISE = 0.05
LATENT_SCALE = 0.18215  # what SD1.5 multiplies a VAE's latents by before diffusion


def new() -> torch.nn.Module:
    """An untrained TAESD; ComfyUI leaves the weights of its modules uninitialised."""
    from comfy.taesd.taesd import TAESD, Block

    model = TAESD()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            # Near-identity residual blocks keep the activations of this deep stack at one scale.
            module.conv[-1].weight.data.mul_(0.1)
    model.taesd_encoder[-1].weight.data.mul_(0.3)
    model.taesd_decoder[-1].weight.data.mul_(0.1)
    torch.nn.init.constant_(model.taesd_decoder[-1].bias, 0.5)
    return model


def train(base: digits.DigitSet, seed: int, report) -> dict[str, torch.Tensor]:
    """Train on the base part of the digits; see `train_on`."""
    plain = torch.from_numpy(digits.paint(base.ink))
    return train_on(lambda random: _coloured_batch(base.ink, random), plain, STEPS, seed, report)


def train_on(draw, plain: torch.Tensor, steps: int, seed: int, report) -> dict[str, torch.Tensor]:
    """Train on pictures; returns fp16 tensors under their names in a checkpoint.

    draw: NumPy's RandomState → a batch of pictures, [BATCH, 64, 64, 3] in 0..1
    plain: pictures of the same form, whose latents are to have mean 0 and deviation 1 where diffusion takes place
    report(step, steps, loss) is called after every step.
    """
    torch.manual_seed(seed)
    random = np.random.RandomState(seed)
    model = new().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        pictures = draw(random).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.taesd_encoder(pictures)
            decoded = model.taesd_decoder(latents + LATENT_NOISE * torch.randn(latents.shape))
        loss = F.l1_loss(decoded.float(), pictures) + F.mse_loss(decoded.float(), pictures) + 0.01 * _spread(latents)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, steps, loss.item())
    _normalise(model, plain)
    return {AUTOENCODER_PREFIX + name: tensor.half() for name, tensor in model.state_dict().items()}


def _coloured_batch(ink: np.ndarray, random: np.random.RandomState) -> torch.Tensor:
    """[BATCH, 64, 64, 3]: shifted digits in black, in the three inks and, half of them glowing, in random colours."""
    inks = list(digits.INKS.values())
    pictures = []
    for row in random.randint(len(ink), size=BATCH):
        shifted = np.roll(ink[row : row + 1], random.randint(-5, 6, size=2), axis=(1, 2))
        look = random.rand()
        if look < PLAIN_SHARE:
            pictures.append(digits.paint(shifted))
        elif look < PLAIN_SHARE + INK_SHARE:
            pictures.append(digits.paint(shifted, stroke=inks[random.randint(len(inks))]))
        else:
            stroke, paper, glow = random.rand(3, 3)
            pictures.append(digits.paint(shifted, stroke, paper, glow if random.rand() < 0.5 else None))
    return torch.from_numpy(np.concatenate(pictures))


def _spread(latents: torch.Tensor) -> torch.Tensor:
    """How far each channel is from mean 0 and deviation 1: diffusion starts from noise of that scale."""
    channels = latents.float().permute(1, 0, 2, 3).flatten(1)
    return channels.mean(1).square().mean() + (channels.std(1) - 1).square().mean()


def _normalise(model: torch.nn.Module, plain: torch.Tensor) -> None:
    """Set vae_scale and vae_shift so that plain digits have mean 0 and deviation 1 where diffusion takes place."""
    with torch.no_grad():
        latents = model.taesd_encoder(plain.permute(0, 3, 1, 2))
        scale = latents.std() * LATENT_SCALE
        model.vae_scale.copy_(scale.half())
        model.vae_shift.copy_(-latents.mean() / scale)
