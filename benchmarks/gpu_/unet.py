"""The UNets of Stable Diffusion 1.5 and XL in plain torch, for machines that have no diffusers.

Names and shapes of every parameter, and the numbers that come out, are those of diffusers' UNet2DConditionModel: a
measurement of one is a measurement of the other. Gradient checkpointing is that of diffusers too: each ResNet block
and each transformer block on its own.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.lib.models import SD_TOKENS, SEED, randomised

NORM_GROUPS = 32
RESNETS_PER_BLOCK = 2


@dataclass(frozen=True)
class Layout:
    """channels, depth and heads: per resolution, from the finest; depth: transformer blocks, 0 for no attention there
    context: width of the text's tokens
    pooled: width of the text's pooled embedding, which goes with six picture sizes; 0 for none
    linear: whether transformers are entered and left by a Linear, not a convolution
    """

    channels: tuple[int, ...]
    depth: tuple[int, ...]
    middle_depth: int
    heads: tuple[int, ...]
    context: int
    pooled: int = 0
    linear: bool = False

    @property
    def time_channels(self) -> int:
        return 4 * self.channels[0]


SIZE_CHANNELS, SIZES = 256, 6
SD15 = Layout((320, 640, 1280, 1280), (1, 1, 1, 0), 1, (8, 8, 8, 8), 768)
SDXL = Layout((320, 640, 1280), (0, 2, 10), 10, (5, 10, 20), 2048, pooled=1280, linear=True)
TINY = Layout((32, 64), (1, 0), 1, (4, 4), 48)
LAYOUTS = {"sd15": SD15, "sdxl": SDXL, "tiny": TINY}


class UNet(nn.Module):
    """(sample [batch, 4, size, size], timestep [batch], context [batch, tokens, layout.context],
    pooled [batch, layout.pooled] and sizes [batch, 6], if any) → [batch, 4, size, size]

    checkpointing: whether blocks compute their activations once more in the backward
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout, self.checkpointing = layout, False
        channels, levels = layout.channels, range(len(layout.channels))
        self.conv_in = nn.Conv2d(4, channels[0], 3, padding=1)
        self.time_embedding = _Embedding(channels[0], layout.time_channels)
        if layout.pooled:
            self.add_embedding = _Embedding(layout.pooled + SIZES * SIZE_CHANNELS, layout.time_channels)
        self.down_blocks = nn.ModuleList()
        skips = [channels[0]]
        for level in levels:
            before = skips[-1]
            widths = [(before if n == 0 else channels[level], channels[level]) for n in range(RESNETS_PER_BLOCK)]
            is_last = level == levels[-1]
            self.down_blocks.append(_Block(layout, level, widths, down=not is_last))
            skips += [channels[level]] * (RESNETS_PER_BLOCK + (not is_last))
        self.mid_block = _Block(layout, levels[-1], [(channels[-1], channels[-1])] * 2, depth=layout.middle_depth)
        self.up_blocks = nn.ModuleList()
        before = channels[-1]
        for level in reversed(levels):
            widths = []
            for _ in range(RESNETS_PER_BLOCK + 1):
                widths.append((before + skips.pop(), channels[level]))
                before = channels[level]
            self.up_blocks.append(_Block(layout, level, widths, up=level > 0))
        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[0], 4, 3, padding=1)

    def forward(self, sample, timestep, context, pooled=None, sizes=None):
        embedding = self.time_embedding(_sinusoids(timestep, self.layout.channels[0]).to(sample.dtype))
        if self.layout.pooled:
            sizes = _sinusoids(sizes.flatten(), SIZE_CHANNELS).view(len(sizes), -1).to(sample.dtype)
            embedding = embedding + self.add_embedding(torch.cat([pooled, sizes], dim=-1))
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            for resnet, attention in block.pairs():
                x = self._run(resnet, attention, x, embedding, context)
                skips.append(x)
            for sampler in getattr(block, "downsamplers", ()):
                x = sampler(x)
                skips.append(x)
        first, last = self.mid_block.resnets
        x = self._run(first, self.mid_block.attentions[0], x, embedding, context)
        x = self._run(last, None, x, embedding, context)
        for block in self.up_blocks:
            for resnet, attention in block.pairs():
                x = self._run(resnet, attention, torch.cat([x, skips.pop()], dim=1), embedding, context)
            for sampler in getattr(block, "upsamplers", ()):
                x = sampler(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _run(self, resnet, attention, x, embedding, context):
        x = self._call(resnet, x, embedding)
        return x if attention is None else attention(x, context, self._call)

    def _call(self, block, *inputs):
        return checkpoint(block, *inputs, use_reentrant=False) if self.checkpointing else block(*inputs)


class _Block(nn.Module):
    """ResNet blocks, each with a transformer where there is attention, and what leads to the next resolution."""

    def __init__(self, layout: Layout, level: int, widths, *, depth: int | None = None, down=False, up=False):
        super().__init__()
        channels, depth_here = layout.channels[level], layout.depth[level] if depth is None else depth
        transformers = len(widths) if depth is None else 1
        if depth_here:
            self.attentions = nn.ModuleList(
                _Transformer(layout, channels, layout.heads[level], depth_here) for _ in range(transformers)
            )
        self.resnets = nn.ModuleList(_ResNet(before, after, layout.time_channels) for before, after in widths)
        if down:
            self.downsamplers = nn.ModuleList([_Sampler(channels, stride=2)])
        if up:
            self.upsamplers = nn.ModuleList([_Sampler(channels, stride=1)])

    def pairs(self):
        return zip(self.resnets, getattr(self, "attentions", [None] * len(self.resnets)))


class _Sampler(nn.Module):
    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x):
        return self.conv(x)


class _Embedding(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(before, after), nn.Linear(after, after)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class _ResNet(nn.Module):
    def __init__(self, before: int, after: int, time_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, before, eps=1e-5)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, after)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, after, eps=1e-5)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x, embedding):
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class _Transformer(nn.Module):
    def __init__(self, layout: Layout, channels: int, heads: int, depth: int):
        super().__init__()
        self.linear = layout.linear
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)
        self.proj_in = self._projection(channels)
        self.transformer_blocks = nn.ModuleList(
            _TransformerBlock(channels, heads, layout.context) for _ in range(depth)
        )
        self.proj_out = self._projection(channels)

    def _projection(self, channels: int) -> nn.Module:
        return nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x, context, call):
        batch, channels, height, width = x.shape
        h = self.norm(x)
        h = self.proj_in(_tokens(h)) if self.linear else _tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = call(block, h, context)
        h = self.proj_out(h) if self.linear else h
        h = h.transpose(1, 2).reshape(batch, channels, height, width)
        return (h if self.linear else self.proj_out(h)) + x


class _TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, context: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(channels), _Attention(channels, channels, heads)
        self.norm2, self.attn2 = nn.LayerNorm(channels), _Attention(channels, context, heads)
        self.norm3, self.ff = nn.LayerNorm(channels), _FeedForward(channels)

    def forward(self, x, context):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class _Attention(nn.Module):
    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, channels, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x, context):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.ModuleList([_GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x):
        for layer in self.net:
            x = layer(x)
        return x


class _GEGLU(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.proj = nn.Linear(before, 2 * after)

    def forward(self, x):
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return hidden * F.gelu(gate)


def _tokens(x):
    return x.flatten(2).transpose(1, 2)


def _sinusoids(numbers, channels: int):
    """fp32 [n, channels] of numbers [n]"""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=numbers.device) / half)
    angles = numbers.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def random_unet(name: str, dtype: torch.dtype, device: str) -> UNet:
    """The UNet of `LAYOUTS[name]` with random weights, drawn on the device."""
    return randomised(lambda: UNet(LAYOUTS[name]), dtype, device)


def random_unet_inputs(layout: Layout, size: int, batch: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """What UNet.forward takes, for latents of size × size; the same numbers on every device."""
    generator = torch.Generator().manual_seed(SEED)
    inputs = [
        torch.randn(batch, 4, size, size, generator=generator),
        torch.full((batch,), 500.0),
        torch.randn(batch, SD_TOKENS, layout.context, generator=generator),
    ]
    if layout.pooled:
        side = 8.0 * size
        inputs += [
            torch.randn(batch, layout.pooled, generator=generator),
            torch.tensor([[side, side, 0.0, 0.0, side, side]] * batch),
        ]
    return [part.to(device, dtype) for part in inputs]
