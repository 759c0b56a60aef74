"""What a noise mask gives is shown to the model as its sampler shows it, and only the rest is learned."""

import contextlib

import pytest
import torch

from tests.support.family_models import FAMILIES
from tests.support.image_to_video_models import IMAGE_TO_VIDEO

BATCH = 2
NAMES = [*IMAGE_TO_VIDEO, "SD1.5", "Flux"]


def network_of(name):
    return IMAGE_TO_VIDEO.get(name) or FAMILIES[name]


def first_frame_given(network):
    """A mask as the host's nodes make it: of a video, the first frame is given; of a picture, its left half."""
    channels, *size = network.latent
    mask = torch.ones(1, 1, *size)
    mask[(..., slice(1), slice(None), slice(None)) if len(size) == 3 else (..., slice(4))] = 0
    return mask


def masked_samples(comfy, patcher, network, mask, count=BATCH):
    latents = [{"samples": latent, "noise_mask": mask} for latent in network.latents(count)]
    pairs = comfy.pack_module("nodes.host.training.pairing").pair(latents, [[c] for c in network.captions(count)])
    return comfy.pack_module("nodes.host.training.dataset").prepare_samples(patcher, pairs, seed=0)


def level_of(denoiser):
    return denoiser.sigmas[len(denoiser.sigmas) * 3 // 5].clone()


@contextlib.contextmanager
def seen(patcher):
    """What the network is called with, and what it returns, once for each call."""
    calls, module = [], patcher.model.diffusion_model
    forward = module.forward

    def record(x, timestep, *args, **kwargs):
        result = forward(x, timestep, *args, **kwargs)
        calls.append((x.clone(), timestep.clone(), kwargs, result))
        return result

    module.forward = record
    try:
        yield calls
    finally:
        del module.forward


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    return network_of(name)


@pytest.fixture(scope="module")
def model(network):
    with torch.inference_mode():
        return network.model()


@pytest.mark.parametrize("given", [0.0, 0.25])
def test_the_network_is_given_what_the_sampler_gives_it(comfy, model, network, given):
    """Input, noise levels and conditions of a forward are those of the first step of ComfyUI's own sampler."""
    from comfy import samplers

    mask = first_frame_given(network).clamp(given)
    with torch.inference_mode(False), torch.no_grad():
        denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(model)
        sigma, noise = level_of(denoiser), network.latents(1, seed=3)[0]
        with seen(model) as calls:
            denoiser.losses(masked_samples(comfy, model, network, mask, 1), [sigma], [noise])
            samplers.sample(
                model, noise, network.captions(1), network.captions(1), 1.0, "cpu", samplers.sampler_object("euler"),
                torch.stack([sigma, torch.zeros(())]), latent_image=network.latents(1)[0], denoise_mask=mask,
            )  # fmt: skip
    (x, timestep, kwargs, _), (sampled_x, sampled_timestep, sampled_kwargs, _) = calls
    assert torch.equal(x, sampled_x)
    assert torch.equal(timestep, sampled_timestep)
    tensors = {key for key, value in sampled_kwargs.items() if isinstance(value, torch.Tensor)}
    assert tensors <= kwargs.keys() and all(torch.equal(kwargs[key], sampled_kwargs[key]) for key in tensors)


def target(name, clean, noise, sigma):
    """What the network has to say of the noisy latent at σ."""
    if name == "SD1.5":
        return noise
    if name == "Cosmos":  # EDM (Karras et al., 2022), σ_data = 0.5
        noisy, total = clean + sigma * noise, (sigma**2 + 0.25) ** 0.5
        return (clean - 0.25 / total**2 * noisy) / (sigma * 0.5 / total)
    return noise - clean


@pytest.mark.parametrize("given", [0.0, 0.25])
def test_the_loss_is_the_mean_over_what_the_mask_leaves_to_learn(comfy, model, name, network, given):
    mask = first_frame_given(network).clamp(given)
    with torch.inference_mode(False), torch.no_grad():
        denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(model)
        samples = masked_samples(comfy, model, network, mask)
        sigma, noises = level_of(denoiser), network.latents(BATCH, seed=3)
        with seen(model) as calls:
            losses = denoiser.losses(samples, [sigma] * BATCH, noises)
    (_, _, _, output), = calls
    for number, sample in enumerate(samples):
        squares = (output[number:][:1].float() - target(name, sample.latent, noises[number], sigma)) ** 2
        expected = (squares * mask).sum() / mask.expand_as(squares).sum()
        assert losses[number].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["Wan 2.2 5B", "SD1.5", "Flux"], indirect=True, scope="module")
@pytest.mark.parametrize("is_masked", [True, False])
def test_what_the_model_says_itself_can_be_the_target(comfy, model, network, is_masked):
    denoising = comfy.pack_module("nodes.host.training.denoiser")
    mask = first_frame_given(network) if is_masked else torch.ones(1, 1, 1, 1)
    with torch.inference_mode(False), torch.no_grad():
        denoiser = denoising.Denoiser(model)
        samples = masked_samples(comfy, model, network, mask)
        sigma, noises = level_of(denoiser), network.latents(BATCH, seed=3)
        drawn = samples, [sigma] * BATCH, noises
        usual, (_, said) = denoiser.losses(*drawn), denoiser.predictions(*drawn)
        scale = denoising.output_scale(model.model.model_sampling, sigma.view(1), said)
        for shift in (0.0, 0.5):
            first, second = denoiser.losses(*drawn, [None, said + shift * scale])
            assert first == usual[0] and second.item() == pytest.approx(shift**2, rel=1e-4, abs=1e-9)


@pytest.fixture(scope="module")
def dense(comfy, network):
    """Weight key → gradient by plain autograd."""
    from comfy import model_management

    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_management, "in_training", True)
        undo = comfy.pack_module("nodes.host.training.kernels").use_differentiable_kernels()
        patcher = network.model()
        module = patcher.model.diffusion_model.requires_grad_(True)
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            masked_loss(comfy, patcher, network)().backward()
        undo()
        return {f"diffusion_model.{key}": parameter.grad for key, parameter in module.named_parameters()}


def masked_loss(comfy, patcher, network):
    samples = masked_samples(comfy, patcher, network, first_frame_given(network))
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(patcher)
    noises = network.latents(BATCH, seed=3)
    return lambda: denoiser.losses(samples, [level_of(denoiser)] * BATCH, noises).mean()


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_equal_dense_masked_ones(comfy, model, network, dense, checkpointing):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    shape, options = (BATCH, *network.latent), {"gradient_checkpointing": checkpointing}
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(model, {"density": 0.05}, shape, **options) as training:
            masked_loss(comfy, training.patcher, network)().backward()
            assert not training.store.unreached()
            for segment in training.store.support:
                expected = dense[segment.name].flatten()[segment.flat()]
                difference = training.store.values.grad[segment.span] - expected
                assert difference.norm() <= 1e-5 * expected.norm(), segment.name


@pytest.mark.parametrize("name", ["Wan 2.2 5B", "LTX-V", "SD1.5", "Flux"], indirect=True, scope="module")
def test_images_with_and_without_a_mask_share_a_batch(comfy, model, network):
    """What a batch of both gives is what each gives alone."""
    with torch.inference_mode(False), torch.no_grad():
        denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(model)
        sigma, noises = level_of(denoiser), network.latents(2, seed=3)
        samples = [
            masked_samples(comfy, model, network, mask)[number]
            for number, mask in enumerate([first_frame_given(network), torch.ones(1, 1, 1, 1)])
        ]
        assert samples[0].mask is not None and samples[1].mask is None
        together = denoiser.losses(samples, [sigma] * 2, noises)
        alone = [denoiser.losses([sample], [sigma], [noise]) for sample, noise in zip(samples, noises)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5)


def test_videos_with_guides_go_through_alone(comfy):
    """LTX-V reads of the first sample which of the guides' tokens are padding."""
    network, joinable = IMAGE_TO_VIDEO["LTX-V"], comfy.pack_module("nodes.host.training.joining").joinable
    with torch.inference_mode(False), torch.no_grad():
        model = network.model()
        samples = masked_samples(comfy, model, network, first_frame_given(network))
        assert joinable(model.model, samples) == [[0, 1]]
        captions = [[text, {**options, "keyframe_idxs": torch.zeros(1, 3, 4)}] for text, options in network.captions(2)]
        mask = first_frame_given(network).flip(2)  # of a guide behind the video
        latents = [{"samples": latent, "noise_mask": mask} for latent in network.latents(2)]
        pairs = comfy.pack_module("nodes.host.training.pairing").pair(latents, [[caption] for caption in captions])
        guided = comfy.pack_module("nodes.host.training.dataset").prepare_samples(model, pairs, seed=0)
        assert joinable(model.model, guided) == [[0], [1]]
