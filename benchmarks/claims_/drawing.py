"""Pictures of a trained model: DDIM (https://arxiv.org/abs/2010.02502, equation 12 with η = 0) with guidance, many
names at a time, the same first noise for the same name and seed whatever the method."""

import torch

from .training import sigmas

# Of 250 names the judge knows as many after 10 steps as after 20.
STEPS, GUIDANCE, TOGETHER = 10, 2.5, 100


@torch.no_grad()
def draw(model: torch.nn.Module, contexts: torch.Tensor, empty: torch.Tensor, seed: int) -> torch.Tensor:
    """Latents [n, 4, 8, 8] as diffusion sees them, one for each context [n, 77, 768]; empty: [77, 768]. All are on the
    model's device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(contexts), 4, 8, 8, generator=generator)
    parts = zip(noise.to(contexts.device).split(TOGETHER), contexts.split(TOGETHER))
    return torch.cat([_part(model, first, context.float(), empty) for first, context in parts])


def _part(model, first: torch.Tensor, contexts: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    levels, count = sigmas(), len(first)
    both = torch.cat([contexts, empty.expand(count, -1, -1)])
    times = torch.linspace(len(levels) - 1, 0, STEPS + 1).round().long()[:-1]
    following = [*levels[times[1:]].tolist(), 0.0]
    x = first * levels[times[0]]
    for time, there, after in zip(times, times.to(first.device), following):
        sigma = levels[time]
        scaled = x / (sigma**2 + 1).sqrt()
        with torch.autocast(first.device.type, torch.bfloat16):
            with_text, without = model(scaled.repeat(2, 1, 1, 1), there.expand(2 * count), both).float().chunk(2)
        predicted = without + GUIDANCE * (with_text - without)
        x = x + (after - sigma) * predicted
    return x


@torch.no_grad()
def decode(autoencoder: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Pictures [n, 64, 64, 3] in 0..1 of latents as diffusion sees them."""
    from demo.autoencoder import LATENT_SCALE

    parts = (latents / LATENT_SCALE).split(TOGETHER)
    return torch.cat([autoencoder.decode(part).permute(0, 2, 3, 1) for part in parts]).add(1).div(2).clamp(0, 1)
