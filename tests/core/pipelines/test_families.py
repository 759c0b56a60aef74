"""`python -m sara_core train` on SDXL, SD3 and Flux: what each network is told, what it should say, whole runs."""

import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from sara_core import SparseDelta, TrainingError, UnsupportedModelError
from sara_core.__main__ import main
from sara_core.data.image_folder import read_image_folder
from sara_core.delta import metadata as keys
from sara_core.diffusers_bridge import denoiser, load_delta
from sara_core.models import identity as base_identity
from sara_core.models.base import opened_base
from sara_core.pipelines import prepare
from sara_core.pipelines.families import FAMILIES
from sara_core.pipelines.prepare import prepare_training
from sara_core.training import snapshot
from tests.core.commands.test_train import (
    WORKER, assembled, first_gradient, losses, mean_loss, settings, torchrun, train,
)  # fmt: skip
from tests.support import tiny_diffusers
from tests.support.small_models import every_bit, relative_error, same_bits

CPU = torch.device("cpu")
PIPELINES = {
    "SDXL": tiny_diffusers.sdxl_pipeline,
    "SD3": tiny_diffusers.sd3_pipeline,
    "SD3 without T5": lambda folder: tiny_diffusers.sd3_pipeline(folder, with_t5=False),
    "Flux dev": tiny_diffusers.flux_pipeline,
    "Flux schnell": lambda folder: tiny_diffusers.flux_pipeline(folder, guidance=False),
}
USUAL = ("SDXL", "SD3", "Flux dev")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folder of each pipeline."""
    folder = tmp_path_factory.mktemp("bases")
    for name, make in PIPELINES.items():
        make(folder / "tokenizer files").save_pretrained(folder / name)
    return {name: folder / name for name in PIPELINES}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_diffusers.image_folder(tmp_path_factory.mktemp("data") / "images")


def prepared(base, images, resolution=32):
    return prepare_training(base, read_image_folder(images).images, resolution, CPU)


def opened(base):
    absent = {"text_encoder_3": None, "tokenizer_3": None} if base.name == "SD3 without T5" else {}
    return diffusers.DiffusionPipeline.from_pretrained(base, dtype=torch.float32, **absent)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_command_trains_a_delta_that_improves_the_model(bases, images, tmp_path, name):
    target = tmp_path / "style.safetensors"
    assert train(bases[name], images, target, "--steps", "12", "--batch-size", "4") == 0
    delta = SparseDelta.load(target)
    assert all(entry.startswith("diffusion_model.") for entry in delta.entries)
    assert delta.metadata[keys.BASE_NAME] == name
    with opened_base(bases[name]) as base:
        assert base_identity.compare(delta.metadata, base.weights()).kind == base_identity.BASE
    pipeline = opened(bases[name])
    before = every_bit(denoiser(pipeline))
    handle = load_delta(pipeline, target)
    assert not same_bits(every_bit(denoiser(pipeline)), before)
    handle.remove()
    assert same_bits(every_bit(denoiser(pipeline)), before)
    loss = mean_loss(prepared(bases[name], images))
    assert mean_loss(prepared(bases[name], images), delta) < 0.99 * loss


@pytest.mark.parametrize("name", USUAL)
def test_bfloat16_and_checkpointing_reach_the_run(bases, images, tmp_path, name):
    target = tmp_path / "style.safetensors"
    options = ["--steps", "2", "--dtype", "bfloat16", "--gradient-checkpointing", "--low-rank", "1e-4"]
    assert train(bases[name], images, target, *options) == 0
    assert json.loads(SparseDelta.load(target).metadata["sara.training"])["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["SDXL", "Flux dev"])
def test_streaming_the_weights_gives_the_same_delta(bases, images, tmp_path, name):
    """Not its bits: weights mapped from a file do not begin where vectors of the processor do, as their copies do, and
    there torch's products may add up in another order."""
    files = tmp_path / "resident.safetensors", tmp_path / "streamed.safetensors"
    for target, options in zip(files, ([], ["--stream"])):
        assert train(bases[name], images, target, "--steps", "2", "--gradient-checkpointing", *options) == 0
    resident, streamed = (SparseDelta.load(target) for target in files)
    assert resident.entries.keys() == streamed.entries.keys()
    for name, entry in resident.entries.items():
        assert torch.equal(entry.indices, streamed.entries[name].indices), name
    values = [torch.cat([entry.values for entry in delta.entries.values()]) for delta in (streamed, resident)]
    assert relative_error(*values) <= 1e-2  # Adam makes much of the smallest gradients


class Encoder:
    def to(self, device):
        self.device = device


ENCODERS = {
    "Stable Diffusion": ("StableDiffusionPipeline", {"text_encoder"}),
    "SDXL": ("StableDiffusionXLPipeline", {"text_encoder", "text_encoder_2"}),
    "SD3": ("StableDiffusion3Pipeline", {"text_encoder", "text_encoder_2", "text_encoder_3"}),
    "SD3 without T5": ("StableDiffusion3Pipeline", {"text_encoder", "text_encoder_2"}),
    "Flux": ("FluxPipeline", {"text_encoder", "text_encoder_2"}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_text_encoders_that_a_device_is_too_small_for_work_on_the_cpu_all_of_them(monkeypatch, name):
    kind, parts = ENCODERS[name]
    parts = {part: Encoder() for part in parts}
    pipeline, family, places = SimpleNamespace(**{"text_encoder_3": None, **parts}), FAMILIES[kind], []

    def text(pipeline, caption, device):
        assert {part.device for part in parts.values()} == {device}
        places.append(device)
        if device != CPU:
            raise error
        return {"text": torch.tensor([len(caption)], dtype=torch.bfloat16)}

    monkeypatch.setattr(family, "text", text)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    texts = prepare._encoded_texts(pipeline, family, {"a", "bc"}, torch.device("cuda"))
    assert places == [torch.device("cuda"), CPU, CPU]
    assert {caption: conditions["text"].tolist() for caption, conditions in texts.items()} == {"a": [1], "bc": [2]}
    assert all(conditions["text"].dtype == torch.float32 for conditions in texts.values())
    error = RuntimeError("another error")
    with pytest.raises(RuntimeError, match="another error"):
        prepare._encoded_texts(pipeline, family, {"a"}, torch.device("cuda"))


def pictures_and_captions(pipeline, images):
    """Latents and captions of the folder, encoded with the pipeline's own parts."""
    config = pipeline.vae.config
    for path in sorted(images.glob("*.png")):
        picture = diffusers.utils.load_image(str(path))
        pixels = pipeline.image_processor.preprocess(picture, 32, 32, resize_mode="crop")
        mean = pipeline.vae.encode(pixels).latent_dist.mean
        yield picture, config.scaling_factor * (mean - (config.shift_factor or 0)), path.with_suffix(".txt").read_text()


def sdxl_error(pipeline, picture, latent, caption, level, noise):
    text, _, pooled, _ = pipeline.encode_prompt(caption, device=CPU, do_classifier_free_guidance=False)
    cut = (picture.width - 32) // 2
    times = pipeline._get_add_time_ids((32, picture.width), (0, cut), (32, 32), torch.float32, 16)
    alpha = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0)[level]
    noisy = alpha.sqrt() * latent + (1 - alpha).sqrt() * noise
    added = {"text_embeds": pooled, "time_ids": times}
    return pipeline.unet(noisy, level, text, added_cond_kwargs=added).sample - noise


def sd3_error(pipeline, picture, latent, caption, level, noise):
    text, _, pooled, _ = pipeline.encode_prompt(caption, caption, caption, do_classifier_free_guidance=False)
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1, 1e-3, 1000))
    sigma, time = pipeline.scheduler.sigmas.flip(0)[1 + level], pipeline.scheduler.timesteps.flip(0)[level]
    noisy = pipeline.scheduler.scale_noise(latent, time[None], noise)
    assert torch.allclose(noisy, (1 - sigma) * latent + sigma * noise)
    predicted = pipeline.transformer(noisy, text, pooled, time[None]).sample
    return predicted - (noise - latent)


def flux_error(pipeline, picture, latent, caption, level, noise):
    has_guidance = pipeline.transformer.config.guidance_embeds
    text, pooled, text_ids = pipeline.encode_prompt(caption, caption, max_sequence_length=512 if has_guidance else 256)
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1, 1e-3, 1000), mu=calculate_shift(8 * 8))
    sigma, time = pipeline.scheduler.sigmas.flip(0)[1 + level], pipeline.scheduler.timesteps.flip(0)[level]
    packed = pipeline._pack_latents((1 - sigma) * latent + sigma * noise, 1, 16, 16, 16)
    ids = pipeline._prepare_latent_image_ids(1, 8, 8, CPU, torch.float32)
    predicted = pipeline.transformer(
        packed, text, pooled, time[None] / 1000, img_ids=ids, txt_ids=text_ids,
        guidance=torch.tensor([3.5]) if has_guidance else None,
    ).sample  # fmt: skip
    return pipeline._unpack_latents(predicted, 32, 32, 2) - (noise - latent)


ERRORS = {"SDXL": sdxl_error, "SD3": sd3_error, "SD3 without T5": sd3_error, "Flux dev": flux_error,
          "Flux schnell": flux_error}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
@torch.no_grad()
def test_the_loss_is_what_the_pipelines_own_parts_give(bases, images, name):
    pipeline, model = opened(bases[name]), prepared(bases[name], images)
    numbers = {id(sample): number for number, sample in enumerate(model.samples)}
    known = list(pictures_and_captions(pipeline, images))
    errors = []
    draws = losses(model, settings(batch_size=8)).draws.next_batch()
    for sample, level, noise in draws:
        picture, latent, caption = known[numbers[id(sample)]]
        error = ERRORS[name](pipeline, picture, latent, caption.strip(), level, noise[None])
        errors.append(error.square().mean().item())
    assert losses(model, settings(batch_size=8))().item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_small_or_upright_picture_is_described_to_sdxl_as_it_is_cut(bases, images):
    size = prepared(bases["SDXL"], images).family.size
    assert size((40, 32), (16, 16))["sizes"].tolist() == [32, 40, 0, 2, 16, 16]
    assert size((500, 1000), (512, 512))["sizes"].tolist() == [1000, 500, 256, 0, 512, 512]
    assert size((512, 512), (512, 512))["sizes"].tolist() == [512, 512, 0, 0, 512, 512]
    assert size((1000, 500), (640, 384))["sizes"].tolist() == [500, 1000, 0, 64, 384, 640]


def test_a_stopped_flux_run_goes_on_bit_for_bit(bases, images, tmp_path):
    models = [prepared(bases["Flux dev"], images) for _ in range(3)]

    def stop(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    whole, stopped, resumed = (assembled(model, settings(steps=5, batch_size=3, adjust_at=[0.5])) for model in models)
    whole.training.run()
    with pytest.raises(KeyboardInterrupt):
        stopped.training.run(stop)
    snapshot.save(tmp_path / "run.safetensors", stopped.training.state(), {})
    resumed.training.load_state(snapshot.load(tmp_path / "run.safetensors")[0])
    assert resumed.training.run() == whole.training.losses
    assert torch.equal(resumed.store.values, whole.store.values)
    assert same_bits(every_bit(models[2].model), every_bit(models[0].model))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_give_the_gradients_of_one_for_sd3(bases, images, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun(tmp_path / "worker.py", bases["SD3"], images, tmp_path)
    first, second = (torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first["values"], second["values"]) and same_bits(first["weights"], second["weights"])
    gradient, loss = first_gradient(bases["SD3"], images)
    assert relative_error(first["gradient"], gradient) <= 1e-5
    assert first["loss"] == pytest.approx(loss, rel=1e-5)


def changed(base, tmp_path, part, **config):
    """A copy of the folder with other entries in a part's configuration, or another part in model_index.json."""
    copy = tmp_path / "changed"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).symlink_to(path)
    source = base / part
    if source.is_dir():
        (copy / part).unlink()
        (copy / part).mkdir()
        for path in source.iterdir():
            (copy / part / path.name).symlink_to(path)
        source = next(source.glob("*config.json"))
    file = copy / source.relative_to(base)
    file.unlink()
    file.write_text(json.dumps({**json.loads(source.read_text()), **config}))
    return copy


def test_a_pipeline_without_its_first_text_encoder_is_refused_as_a_refiner(bases, images, tmp_path):
    nothing = [None, None]
    folder = changed(bases["SDXL"], tmp_path, "model_index.json", text_encoder=nothing, tokenizer=nothing)
    with pytest.raises(UnsupportedModelError, match="has no text_encoder .SDXL's refiner.* a whole base model"):
        prepared(folder, images)


UNETS = {
    "told five sizes": ({"projection_class_embeddings_input_dim": 5 * 8 + 16}, "told other things of a picture"),
    "told no sizes": ({"addition_embed_type": None}, "told other things of a picture"),
    "for inpainting": ({"in_channels": 9}, "takes a picture beside the noise .* the model it was made from"),
}


@pytest.mark.parametrize("what", UNETS)
def test_a_unet_that_wants_something_else_is_refused(images, tmp_path, what):
    options, message = UNETS[what]
    pipeline = tiny_diffusers.sdxl_pipeline(tmp_path / "tokenizer")
    pipeline.unet = diffusers.UNet2DConditionModel(**{**tiny_diffusers.SDXL, **options})
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=message):
        prepared(tmp_path / "model", images)


def test_a_flux_that_takes_a_picture_too_is_refused(images, tmp_path):
    pipeline = tiny_diffusers.flux_pipeline(tmp_path / "tokenizer")
    pipeline.transformer = diffusers.FluxTransformer2DModel(**{**tiny_diffusers.FLUX, "in_channels": 128})
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="takes a picture beside the noise"):
        prepared(tmp_path / "model", images)


SCHEDULERS = {"SD3": diffusers.DPMSolverMultistepScheduler, "SDXL": diffusers.EDMEulerScheduler}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_does_not_tell_the_noise_is_refused_by_name(images, tmp_path, name):
    pipeline = PIPELINES[name](tmp_path / "tokenizer")
    pipeline.scheduler = SCHEDULERS[name]()
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=SCHEDULERS[name].__name__):
        prepared(tmp_path / "model", images)


@pytest.mark.parametrize("name, resolution, message", [
    ("Flux dev", 34, "must be a multiple of 4, not 34"),
    ("SD3", 30, "must be a multiple of 4, not 30"),
    ("SD3", 64, "a resolution of at most 32, not 64"),
])  # fmt: skip
def test_a_resolution_that_does_not_suit_the_model_is_refused(bases, images, name, resolution, message):
    with pytest.raises(TrainingError, match=message):
        prepared(bases[name], images, resolution)


def test_a_single_file_is_refused_with_the_way_to_convert_it(images, tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"")
    arguments = ["train", tmp_path / "model.safetensors", images, tmp_path / "o.safetensors"]
    assert main(list(map(str, arguments))) == 1
    error = capsys.readouterr().err
    assert "is no diffusers folder" in error and "StableDiffusion3Pipeline or FluxPipeline" in error
