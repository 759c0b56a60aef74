"""MODEL, samples and noise → the loss of a batch, for whatever parameterisation the model has.

The host's model returns the denoised picture x0. Its output is affine in what the network returns, with
coefficients that depend on the noise level σ and the noisy input x only:

    denoised = a(σ, x) + b(σ) · output,   a = calculate_denoised(σ, 0, x),   b = calculate_denoised(σ, 1, 0)

so the network's own target for a clean latent x0 is (x0 − a) / b: the noise for an eps model, the velocity for v and
flow models. A mean squared error on x0 itself would weight an eps model by σ².
"""

import comfy.ldm.modules.attention
import torch

from .dataset import Sample, without_inference_tensors


class DenoisingLoss:
    """Draws batches, noise and noise levels from one seed, and computes losses.

    All random numbers are drawn on the CPU, so that a seed means the same on every device.
    """

    def __init__(self, patcher, samples: list[Sample], batch_size: int, seed: int):
        self.patcher, self.samples, self.batch_size = patcher, samples, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def __call__(self) -> torch.Tensor:
        """Loss of the next batch: the mean over its samples, fp32 scalar with graph."""
        batch = [self.samples[number] for number in self._next_batch()]
        draws = [self._draw(sample) for sample in batch]
        losses = [
            self._loss([batch[i] for i in group], [draws[i] for i in group]) * (len(group) / len(batch))
            for group in _joinable(batch)
        ]
        return torch.stack(losses).sum()

    def _next_batch(self) -> list[int]:
        """Every sample once per epoch, in a new order each time."""
        while len(self.queue) < self.batch_size:
            self.queue += torch.randperm(len(self.samples), generator=self.generator).tolist()
        batch, self.queue = self.queue[:self.batch_size], self.queue[self.batch_size:]
        return batch

    def _draw(self, sample: Sample):
        # The schedule's own table includes the model's shift; levels of one's own making leave its range.
        sigmas = self.patcher.model.model_sampling.sigmas
        index = int(torch.randint(len(sigmas), (1,), generator=self.generator))
        noise = torch.randn(sample.latent.shape, generator=self.generator)
        return sigmas[index].clone(), noise.to(sample.latent)

    def _loss(self, samples: list[Sample], draws: list) -> torch.Tensor:
        model = self.patcher.model
        clean = torch.cat([sample.latent for sample in samples])
        sigma = torch.stack([sigma for sigma, _ in draws]).to(clean)
        noise = torch.cat([noise for _, noise in draws])
        noisy = model.model_sampling.noise_scaling(sigma, noise, clean, False)
        denoised = model.apply_model(noisy, sigma, **self._model_arguments(samples, sigma)).float()

        a, b = affine_coefficients(model.model_sampling, sigma, noisy)
        return torch.nn.functional.mse_loss((denoised - a) / b, (clean - a) / b)

    def _model_arguments(self, samples: list[Sample], sigma) -> dict:
        first, rest = samples[0].conditions, [sample.conditions for sample in samples[1:]]
        arguments = {name: cond.concat([other[name] for other in rest]) for name, cond in first.items()}
        options = dict(self.patcher.model_options.get("transformer_options", {}))
        options.update(
            cond_or_uncond=[0], sigmas=sigma, optimized_attention_override=_differentiable_attention
        )
        return {**without_inference_tensors(arguments), "transformer_options": options}


def affine_coefficients(model_sampling, sigma, noisy):
    """(a, b) of the module's equation, each broadcastable to `noisy`."""
    zero = torch.zeros_like(noisy)
    a = model_sampling.calculate_denoised(sigma, zero, noisy)
    b = model_sampling.calculate_denoised(sigma, torch.ones_like(noisy), zero)
    return a, b


def _joinable(batch: list[Sample]) -> list[list[int]]:
    """Positions in the batch, grouped so that each group can go through the model at once."""
    groups: list[list[int]] = []
    for position, sample in enumerate(batch):
        for group in groups:
            if batch[group[0]].can_join(sample):
                group.append(position)
                break
        else:
            groups.append([position])
    return groups


def _differentiable_attention(function, *args, **kwargs):
    """Some of the host's attention backends are for inference only; this one has a backward everywhere."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
