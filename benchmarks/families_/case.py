"""What a small random model is made of, and what a text encoder or a node would give it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Maker = Callable[[torch.Generator], object]


@dataclass(frozen=True)
class Case:
    """config: the host's configuration class; variant: what sets it apart from that class's other cases, or ""
    layout: what the class's own unet_config leaves open, and sizes that are smaller than its own
    latent: shape of one sample, as a VAE makes it; several of models that make two things at once
    encode: generator → CONDITIONING entry
    beside: further weights that the host wants to make the model, name → shape
    changed: attributes of the host's modules that hold sizes which no layout does: (module, attribute) → keyword
        arguments that its callable gets
    noise_mask: shape of the mask by which a node says which frames are given
    """

    config: str
    variant: str
    layout: dict
    latent: tuple
    encode: Callable[[torch.Generator], list]
    beside: dict[str, tuple[int, ...]] = field(default_factory=dict)
    changed: dict[tuple[str, str], dict] = field(default_factory=dict)
    noise_mask: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.config} {self.variant}".rstrip()

    def latents(self, count: int, seed: int = 1) -> list[torch.Tensor]:
        """Random latents, [1, *latent] in fp32 each; the host's nested tensors where a latent has several."""
        generator = torch.Generator().manual_seed(seed)
        return [self._latent(generator) for _ in range(count)]

    def _latent(self, generator: torch.Generator):
        if isinstance(self.latent[0], int):
            return torch.randn(1, *self.latent, generator=generator)
        from comfy.nested_tensor import NestedTensor

        return NestedTensor([torch.randn(1, *shape, generator=generator) for shape in self.latent])

    def captions(self, count: int, seed: int = 2) -> list[list]:
        """Random captions as entries of a CONDITIONING: [tensor, options] each."""
        generator = torch.Generator().manual_seed(seed)
        return [self.encode(generator) for _ in range(count)]


def text(size: int, tokens: int = 12, /, **options) -> Callable[[torch.Generator], list]:
    """A maker of captions: fp32 [1, tokens, size], and options by name, made by a function of the generator where
    they are not plain values."""

    def encode(generator):
        made = {name: value(generator) if callable(value) else value for name, value in options.items()}
        return [torch.randn(1, tokens, size, generator=generator), made]

    return encode


def normal(*shape: int) -> Maker:
    return lambda generator: torch.randn(shape, generator=generator)


def several(*makers: Maker) -> Maker:
    """A list of what each makes, as the host has reference pictures."""
    return lambda generator: [make(generator) for make in makers]


def integers(*shape: int, below: int) -> Maker:
    return lambda generator: torch.randint(below, shape, generator=generator)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Maker:
    return lambda generator: torch.ones(shape, dtype=dtype)


class _Seen:
    """What a CLIP vision model makes of a picture."""

    def __init__(self, hidden: torch.Tensor, width: int):
        self.penultimate_hidden_states = self.last_hidden_state = hidden
        self.image_embeds = torch.zeros(1, width)
        side = 16 * int(hidden.shape[1] ** 0.5)
        self.image_sizes = [(3, side, side)]


def seen(tokens: int, width: int) -> Maker:
    return lambda generator: _Seen(torch.randn(1, tokens, width, generator=generator), width)
