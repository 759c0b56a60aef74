"""A MODEL with every weight below θ taken for zero while it computes: the paper's premise, for people to see.

The host applies such functions to a weight each time it is used, wherever it lies, and leaves the weight itself alone:
nothing is copied and nothing has to be undone.
"""

from collections.abc import Iterable, Mapping

import comfy.sample
import comfy.samplers
import torch

from ...sara_core.backward.attach import layers
from ...sara_core.selection.one_at_a_time import OneAtATime
from .base_weights import base_weight

TRAINED_PART = "diffusion_model"
# Early, middle and late in sampling, as positions in the model's table of noise levels.
NOISE_LEVELS = (0.2, 0.5, 0.8)


class ZeroBelow:
    """weight → weight with 0 wherever |weight| < theta; theta may be changed between uses."""

    def __init__(self, theta: float):
        self.theta = theta

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        # In float32, as elements are selected: in half precision θ itself would be rounded.
        return torch.where(weight.float().abs() < self.theta, 0, weight)


def layer_weights(model) -> Mapping[str, torch.Tensor]:
    """ComfyUI weight key → weight, without the patches (LoRAs) that are on the MODEL, of every Linear and Conv layer;
    a tied weight once."""
    weights, seen = {}, set()
    for name, layer in layers(getattr(model.model, TRAINED_PART)).items():
        if id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            key = f"{TRAINED_PART}.{name}.weight"
            weights[key] = layer.weight
    return OneAtATime(weights, lambda key: base_weight(model, key, weights[key]))


def zeroed_model(model, zero: ZeroBelow):
    """A clone of MODEL whose Linear and Conv weights pass through `zero`."""
    clone = model.clone()
    for name in layers(getattr(model.model, TRAINED_PART)):
        clone.add_weight_wrapper(f"{TRAINED_PART}.{name}.weight", zero)
    return clone


def prediction_changes(model, thetas: Iterable[float], positive, latent, on_step) -> dict[float, float]:
    """θ → ‖prediction with everything below θ at zero − prediction‖ / ‖prediction‖, averaged over noise levels.

    The prediction is what the network itself returns (noise, velocity …), for the first picture of `latent` under
    `positive`. `on_step()` is called before each evaluation and may raise to stop.
    """
    measurement = _Measurement(thetas, on_step)
    patcher = zeroed_model(model, measurement.zero)
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"][:1])
    table = patcher.get_model_object("model_sampling").sigmas
    sigmas = torch.stack([table[int(position * (len(table) - 1))] for position in NOISE_LEVELS])
    comfy.sample.sample_custom(
        patcher, comfy.sample.prepare_noise(samples, 0), 1.0, measurement, sigmas, positive, positive, samples,
        disable_pbar=True, seed=0,
    )  # fmt: skip
    return measurement.changes


class _Measurement(comfy.samplers.Sampler):
    """A sampler, because the host prepares everything for one: conditioning, memory, ControlNets. It draws nothing."""

    def __init__(self, thetas: Iterable[float], on_step):
        self.zero, self.changes, self.on_step = ZeroBelow(0.0), {theta: 0.0 for theta in thetas}, on_step

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_sampling = model_wrap.inner_model.model_sampling
        for sigma in sigmas:
            sigma = sigma.to(noise).expand(1)
            noisy = model_sampling.noise_scaling(sigma, noise, latent_image, False)
            before = self._prediction(model_wrap, model_sampling, noisy, sigma, extra_args, 0.0)
            for theta in self.changes:
                change = self._prediction(model_wrap, model_sampling, noisy, sigma, extra_args, theta) - before
                self.changes[theta] += float(change.norm() / before.norm()) / len(sigmas)
        return latent_image

    def _prediction(self, model_wrap, model_sampling, noisy, sigma, extra_args, theta) -> torch.Tensor:
        self.on_step()
        self.zero.theta = theta
        denoised = model_wrap(noisy, sigma, **extra_args)
        # What the host returns is affine in what the network does: see training/denoiser.py.
        offset = model_sampling.calculate_denoised(sigma, torch.zeros_like(noisy), noisy)
        scale = model_sampling.calculate_denoised(sigma, torch.ones_like(noisy), torch.zeros_like(noisy))
        return ((denoised - offset) / scale).float()
