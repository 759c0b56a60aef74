"""Samples as the model sees them, made from images and captions in the real host, and losses over them."""

import pytest
import torch

from tests.support.toy_training import denoising_loss


@pytest.fixture(scope="module")
def tensors():
    """Four images of two sizes and four captions, and the empty one, as inference tensors like the host's."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(1)
        images = [torch.randn(1, 4, 8, 8 + 8 * (n % 2), generator=generator) for n in range(4)]
        captions = [[torch.randn(1, 77, 768, generator=generator), {}] for _ in range(5)]
    return images, captions[:4], captions[4]


def prepare(comfy, model, images, captions, unconditional=None):
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(images, captions)
    with torch.inference_mode(False), torch.enable_grad():
        return comfy.pack_module("nodes.host.training.dataset").prepare_samples(model, pairs, 0, unconditional)


def text_of(conditions):
    return conditions["c_crossattn"].cond


def test_samples_are_scaled_once_and_keep_their_captions(comfy, model, tensors):
    images, captions, empty = tensors
    samples = prepare(comfy, model, images, captions, empty)
    for sample, image, (text, _) in zip(samples, images, captions):
        assert torch.equal(sample.latent, image.clone() * 0.18215)
        assert torch.equal(text_of(sample.conditions), text)
        assert torch.equal(text_of(sample.without_caption().conditions), empty[0])
        assert not sample.latent.is_inference() and not sample.latent.requires_grad


def test_a_shared_caption_is_kept_once(comfy, model, tensors):
    images, captions, empty = tensors
    samples = prepare(comfy, model, images, captions[:1] * 4, empty)
    assert {text_of(sample.conditions).data_ptr() for sample in samples} == {captions[0][0].data_ptr()}
    assert {text_of(sample.unconditional).data_ptr() for sample in samples} == {empty[0].data_ptr()}


def test_samples_wait_on_the_offload_device(comfy, model, tensors, monkeypatch):
    images, captions, empty = tensors
    monkeypatch.setattr(model, "offload_device", torch.device("meta"))
    sample = prepare(comfy, model, images, captions, empty)[0]
    waiting = [sample.latent, text_of(sample.conditions), text_of(sample.unconditional)]
    assert {tensor.device.type for tensor in waiting} == {"meta"}


def test_moving_a_sample_changes_no_bit_and_reaches_every_tensor(comfy, model, tensors):
    import comfy.conds as conds

    sample_class = comfy.pack_module("nodes.host.training.dataset").HostSample
    tensor = torch.arange(6.0)
    conditions = {
        "regular": conds.CONDRegular(tensor), "list": conds.CONDList([tensor, tensor + 1]),
        "constant": conds.CONDConstant({"shape": (8, 8), "mask": tensor}), "number": conds.CONDConstant(0.5),
    }
    moved = sample_class(tensor, conditions).on(torch.device("meta")).conditions
    assert [type(cond) for cond in moved.values()] == [type(cond) for cond in conditions.values()]
    there = (moved["regular"].cond, *moved["list"].cond, moved["constant"].cond["mask"])
    assert {tensor.device.type for tensor in there} == {"meta"}
    assert moved["constant"].cond["shape"] == (8, 8) and moved["number"].cond == 0.5
    back = sample_class(tensor, conditions).on(torch.device("cpu"))
    assert torch.equal(back.latent, tensor) and torch.equal(back.conditions["list"].cond[1], tensor + 1)


def test_dropping_a_caption_keeps_what_belongs_to_the_image(comfy, model, tensors, monkeypatch):
    """SDXL's size conditioning, guidance and reference pictures are no text."""
    images, captions, empty = tensors
    dataset = comfy.pack_module("nodes.host.training.dataset")
    seen = []
    original = dataset.conditions_of
    monkeypatch.setattr(dataset, "conditions_of", lambda *args: seen.append(args[2]) or original(*args))
    with_options = [[captions[0][0], {"guidance": 3.0, "pooled_output": 1}]]
    prepare(comfy, model, images[:1], with_options, [empty[0], {"pooled_output": 2}])
    assert seen[0][1] == {"guidance": 3.0, "pooled_output": 1}
    assert seen[1][0] is empty[0] and seen[1][1] == {"guidance": 3.0, "pooled_output": 2}


@pytest.mark.parametrize("image, message", [
    (torch.zeros(1, 16, 8, 8), "image 2 have 16 channels, this MODEL works with 4.*VAE that belongs"),
    (torch.full((1, 4, 8, 8), torch.nan), "image 2 hold values that are not numbers.*--fp32-vae"),
])
def test_images_that_do_not_fit_are_named(comfy, model, tensors, image, message):
    images, captions, _ = tensors
    with pytest.raises(Exception, match=message) as raised:
        prepare(comfy, model, [images[0], image], captions[:2])
    assert type(raised.value).__name__ == "TrainingError"


def test_every_latent_format_of_the_host_takes_what_its_vae_makes(comfy):
    from comfy import latent_formats

    vae_channels = comfy.pack_module("nodes.host.training.dataset").vae_channels
    formats = [f for f in vars(latent_formats).values()
               if isinstance(f, type) and issubclass(f, latent_formats.LatentFormat)]
    assert len(formats) > 20
    for make in formats:
        layout = make()
        latent = torch.zeros(1, vae_channels(layout), *[3] * layout.latent_dimensions)
        assert layout.process_in(latent).shape[1] == layout.latent_channels, make.__name__


def test_a_picture_is_one_frame_to_a_video_model(comfy, model, tensors, monkeypatch):
    from comfy import latent_formats

    _, captions, _ = tensors
    monkeypatch.setattr(model.model, "latent_format", latent_formats.Wan21())
    sample, = prepare(comfy, model, [torch.zeros(1, 16, 8, 8)], captions[:1])
    assert sample.latent.shape == (1, 16, 1, 8, 8)


@pytest.mark.parametrize("options", [{}, {"min_snr_gamma": 5.0}], ids=["plain", "min-SNR"])
def test_a_batch_with_everything_costs_what_its_samples_do(comfy, model, tensors, options):
    """Mixed sizes, dropped captions and class images through the real model at once, and one by one by hand."""
    images, captions, empty = tensors
    samples = prepare(comfy, model, images, captions, empty)
    class_samples = prepare(comfy, model, images[:2], captions[2:], empty)
    options = {"class_samples": class_samples, "prior_weight": 0.5, "caption_dropout": 0.5, **options}
    with torch.inference_mode(False), torch.no_grad():
        together = denoising_loss(comfy, model, samples, 3, **options)()
        assert torch.equal(together, denoising_loss(comfy, model, samples, 3, **options)())
        drawing = denoising_loss(comfy, model, samples, 3, **options)
        table = model.model.model_sampling
        expected = []
        for draws in (drawing.draws, drawing.class_draws):
            losses = []
            for sample, level, noise in draws.next_batch():
                sigma = table.sigmas[level]
                noisy = (sample.latent + sigma * noise) / (sigma**2 + 1) ** 0.5
                timestep = table.timestep(sigma[None]).float()
                output = model.model.diffusion_model(noisy, timestep, context=text_of(sample.conditions).clone())
                weight = min(1 / sigma**2, 5.0) * sigma**2 if "min_snr_gamma" in options else 1.0
                losses.append(weight * torch.nn.functional.mse_loss(output, noise))
            expected.append(torch.stack(losses).mean())
    assert together.item() == pytest.approx((expected[0] + 0.5 * expected[1]).item(), rel=1e-5)
