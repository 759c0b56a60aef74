"""MODEL, samples and noise → the loss of a batch, for whatever parameterisation the model has.

The host's model returns the denoised picture x0. Its output is affine in what the network returns, with
coefficients that depend on the noise level σ and the noisy input x only:

    denoised = a(σ, x) + b(σ) · output,   b = calculate_denoised(σ, 1, 0)

so the network's own target for a clean latent x0 is (x0 − a) / b (the noise for an eps model, the velocity for v and
flow models), and its error is (denoised − x0) / b. A mean squared error on x0 itself would weight an eps model by σ².

Under a noise mask m the network is given what the sampler gives it, x_m (masks.py), and still asked for the target of
x, its own where m = 1. Where m is in between, a network that is told so, as image-to-video ones are, sees x0 at the
level m · σ, where its velocity is the same. The error is (denoised − a(σ, x_m)) / b − (x0 − a(σ, x)) / b, and each
element counts m.

Where the network's own output before the training is the target, the error is (denoised − denoised before) / b.
"""

from collections.abc import Sequence
from typing import NamedTuple

import comfy.ldm.modules.attention
import torch

from .dataset import HostSample, without_inference_tensors
from .joining import joinable
from .masks import as_sampled, learned
from .memories import nothing_kept
from .node_patches import differentiable
from .refusals import incomplete_captions_explained


class _Given(NamedTuple):
    """Of samples that fit together, each [n, …] as the latents are: clean; given, what the network is given of them at
    the noise levels sigma [n]; scale, b of the module's equation; moved, a(σ, x) − a(σ, x_m), and mask, None without
    one"""

    clean: torch.Tensor
    given: torch.Tensor
    sigma: torch.Tensor
    scale: torch.Tensor
    moved: torch.Tensor | None
    mask: torch.Tensor | None


class Denoiser:
    """Runs a loaded MODEL (its patcher) on noisy samples and compares what the network returns with its target."""

    def __init__(self, patcher):
        self.patcher = patcher

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels of the model, rising, fp32 [n]: they include its shift; levels of one's own making leave
        its range."""
        return self.patcher.model.model_sampling.sigmas

    def losses(
        self, samples: list[HostSample], sigmas: list[torch.Tensor], noises: list[torch.Tensor],
        targets: Sequence[torch.Tensor | None] = (),
    ) -> torch.Tensor:  # fmt: skip
        """Mean squared error of each sample at its noise level, over what its mask leaves to learn: fp32
        [len(samples)], with graph.

        samples: of any sizes and captions; those that fit together go through the model together
        sigmas: scalars out of `self.sigmas`; noises: of the shape of each sample's latent, on any device
        targets: of each sample what `predictions` gave, where that is to be learned, or None; by default None for all
        """
        return torch.stack(self._of_each(self._losses, samples, sigmas, noises, targets or [None] * len(samples)))

    def predictions(
        self, samples: list[HostSample], sigmas: list[torch.Tensor], noises: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What the model makes of each sample at its noise level, fp32 [1, …] as its latent, with graph if there is to
        be one; arguments as for `losses`."""
        return self._of_each(self._predictions, samples, sigmas, noises)

    def _of_each(self, function, samples, *others) -> list:
        """The results of a function of lists, which is called with those that fit together."""
        found = [None] * len(samples)
        for group in joinable(self.patcher.model, samples):
            together = function(*([values[i] for i in group] for values in (samples, *others)))
            for position, result in zip(group, together):
                found[position] = result
        return found

    def _losses(self, samples, sigmas, noises, targets) -> torch.Tensor:
        inputs = self._inputs(samples, sigmas, noises)
        denoised = self._denoised(inputs.given, inputs.sigma, samples)
        errors = denoised - inputs.clean if inputs.moved is None else denoised + inputs.moved - inputs.clean
        if any(target is not None for target in targets):
            errors = torch.cat([
                error if target is None else own - target
                for error, own, target in zip(errors.split(1), denoised.split(1), targets)
            ])  # fmt: skip
        squares = (errors / inputs.scale).square()
        if inputs.mask is None:
            return squares.flatten(1).mean(1)
        weights = learned(inputs.mask)
        return (squares * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)

    def _predictions(self, samples, sigmas, noises) -> Sequence[torch.Tensor]:
        inputs = self._inputs(samples, sigmas, noises)
        return self._denoised(inputs.given, inputs.sigma, samples).split(1)

    def _inputs(self, samples, sigmas, noises) -> _Given:
        model, sampling = self.patcher.model, self.patcher.model.model_sampling
        clean = torch.cat([sample.latent for sample in samples])
        sigma, noise = torch.stack(sigmas).to(clean), torch.cat(noises).to(clean)
        noisy = sampling.noise_scaling(sigma, noise, clean, False)
        scale = output_scale(sampling, sigma, noisy)
        if samples[0].mask is None:
            return _Given(clean, noisy, sigma, scale, None, None)
        mask = torch.cat([sample.mask for sample in samples])
        given = as_sampled(model, noisy, sigma, noise, clean, mask)
        moved = _part_of_input(sampling, sigma, noisy) - _part_of_input(sampling, sigma, given)
        return _Given(clean, given, sigma, scale, moved, mask)

    def _denoised(self, noisy, sigma, samples: list[HostSample]) -> torch.Tensor:
        model = self.patcher.model
        with nothing_kept(model.diffusion_model), incomplete_captions_explained(self.patcher, (ValueError,)):
            return model.apply_model(noisy, sigma, **self._model_arguments(samples, sigma)).float()

    def _model_arguments(self, samples: list[HostSample], sigma) -> dict:
        first, rest = samples[0].conditions, [sample.conditions for sample in samples[1:]]
        arguments = {name: cond.concat([other[name] for other in rest]) for name, cond in first.items()}
        options = {
            **differentiable(self.patcher.model_options.get("transformer_options", {})),
            "cond_or_uncond": [0],
            "sigmas": sigma,
            # Sampling would say here which level comes next. A model that is told (HunyuanImage 2.1 distilled) gives
            # the mean velocity from one to the other: what it has to learn of a single level is that from it to itself.
            "sample_sigmas": torch.stack([sigma.max(), sigma.max()]),
            "optimized_attention_override": _differentiable_attention,
        }
        return {**without_inference_tensors(arguments), "transformer_options": options}


def output_scale(model_sampling, sigma, noisy):
    """b(σ) of the module's equation, broadcastable to `noisy`."""
    return model_sampling.calculate_denoised(sigma, torch.ones_like(noisy), torch.zeros_like(noisy))


def _part_of_input(model_sampling, sigma, noisy):
    """a(σ, x) of the module's equation."""
    return model_sampling.calculate_denoised(sigma, torch.zeros_like(noisy), noisy)


def _differentiable_attention(function, *args, **kwargs):
    """Some of the host's attention backends are for inference only; this one has a backward everywhere."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
