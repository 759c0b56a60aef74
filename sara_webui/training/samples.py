"""Pictures of fixed prompts while a model trains, drawn from the same noise each time with the weights as they are.

Drawn by DDIM (Song et al., "Denoising Diffusion Implicit Models", 2020) rather than by the WebUI's own samplers: these
load whatever model is chosen in the page by now, and put networks on and off.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from .host import TrainedModel

STEPS, GUIDANCE = 20, 7.0


class Samples:
    """The pictures of a run.

    prompts: one picture each, of `size`, width and height in pixels; seed: of the noise
    check: called before each forward; raises what is to end the run
    """

    def __init__(
        self, model: TrainedModel, prompts: Sequence[str], size: tuple[int, int], seed: int, check: Callable[[], None]
    ):  # fmt: skip
        self.model, self.prompts, self.seed, self.check = model, list(prompts), seed, check
        self._shape = (size[1] // model.patch, size[0] // model.patch)
        self._conditions = [model.conditions(prompt, size) for prompt in self.prompts]
        self._empty = model.conditions("", size)

    @torch.no_grad()
    def draw(self) -> list[torch.Tensor]:
        """A picture of each prompt: fp32 [height, width, 3], 0 … 1. Draws no random number of the process's."""
        return [self._drawn(number, conditions) for number, conditions in enumerate(self._conditions)]

    def _drawn(self, number: int, conditions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        model, device = self.model, self.model.device
        generator = torch.Generator().manual_seed(self.seed + number)
        channels = next(weight for weight in model.unet.parameters() if weight.dim() == 4).shape[1]
        latent = torch.randn(1, channels, *self._shape, generator=generator).to(device)
        levels = torch.linspace(len(model.signal) - 1, 0, STEPS).round().long()
        signal = [*model.signal[levels].to(device), torch.ones((), device=device)]  # in the end all is signal
        told = _together(conditions, self._empty, device)
        for level, now, following in zip(levels.tolist(), signal, signal[1:]):
            self.check()
            both = model.predict(model.unet, latent.expand(2, -1, -1, -1), torch.tensor([level] * 2).to(device), told)
            wanted, without = both.float().split(1)
            latent = self._less_noisy(latent, without + GUIDANCE * (wanted - without), now, following)
        return model.picture(latent[0])

    def _less_noisy(
        self, latent: torch.Tensor, predicted: torch.Tensor, now: torch.Tensor, then: torch.Tensor
    ) -> torch.Tensor:
        """now, then: ᾱ of the latent, and of the one to be made of it"""
        if self.model.prediction == "v":
            predicted = now.sqrt() * predicted + (1 - now).sqrt() * latent
        clean = (latent - (1 - now).sqrt() * predicted) / now.sqrt()
        return then.sqrt() * clean + (1 - then).sqrt() * predicted


def padded(conditions: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Conditions that can be stacked: texts of fewer tokens get their last one again, as the WebUIs do in a batch."""
    lengths = {
        name: max(one[name].shape[0] for one in conditions) for name in conditions[0] if conditions[0][name].dim() == 2
    }
    return [{name: _as_long(tensor, lengths.get(name)) for name, tensor in one.items()} for one in conditions]


def _as_long(tensor: torch.Tensor, length: int | None) -> torch.Tensor:
    missing = 0 if length is None else length - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, -1)]) if missing else tensor


def _together(first: Mapping, second: Mapping, device: torch.device) -> dict[str, torch.Tensor]:
    first, second = padded([first, second])
    return {name: torch.stack([first[name], second[name]]).to(device) for name in first}
