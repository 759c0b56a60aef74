"""Gradient checkpointing of a UNet's blocks. The WebUI's own is reentrant, which sparse layers refuse: no gradient of
theirs would come through it."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

# Of the libraries that the UNets come from.
BLOCKS = ("BasicTransformerBlock", "ResBlock", "AttentionBlock", "ResnetBlock2D")


@contextmanager
def checkpointed(unet: torch.nn.Module) -> Iterator[None]:
    """Inside, the activations of the UNet's blocks are computed again in the backward instead of kept."""
    blocks = [block for block in unet.modules() if type(block).__name__ in BLOCKS and "forward" not in vars(block)]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
