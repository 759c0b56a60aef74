"""What training on quantised weights takes: never more than one of them dequantised, and what was foretold."""

import pytest
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tests.nodes.loading.test_apply_memory import AliveBytes
from tests.support import quantised_models
from tests.support.quantised_models import LAYOUTS
from tests.support.toy_models import unload

FAMILY = LAYOUTS["Flux"]
# One weight dequantised, and while Δ is added to it the positions and values of its trained elements.
ONE_WEIGHT = 1.1
KINDS = [kind for kind in quantised_models.KINDS if kind != "bf16"]


class AliveParts(AliveBytes):
    """Counts the tensors too that others are made of: quantised ones, sparse ones."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._seen.update(part.untyped_storage()._cdata for value in args for part in strided_parts(value))
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            for part in strided_parts(made):
                self._count(part.untyped_storage())
        return result


def strided_parts(value):
    if not isinstance(value, torch.Tensor):
        return
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from strided_parts(getattr(value, name))
    elif value.layout is torch.sparse_csr:
        yield from (value.values(), value.crow_indices(), value.col_indices())
    elif value.layout is torch.strided and not value.is_meta:
        yield value


def load(model):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])


@pytest.fixture(scope="module")
def peak_of_a_run(comfy):
    """MODEL → most bytes alive in a run beyond the model and the data."""
    session = comfy.pack_module("nodes.host.training.session")
    magnitudes = comfy.pack_module("sara_core.selection.magnitudes")
    latents = [{"samples": latent} for latent in FAMILY.latents(1)]
    (caption, options), = FAMILY.captions(1)
    captions = [[[caption[:, :8], options]]]  # short, so that weights and not activations make the peak

    def peak(model):
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(session, "estimate", lambda *_: None)  # counts tensors without content
            patch.setattr(magnitudes, "SAMPLE", 1 << 10)  # of a small model it would be a copy
            load(model)
            with AliveParts() as memory:
                execute(model)
        unload()
        return memory.peak

    def execute(model):
        comfy.execute(
            "SaRATrain", model=model, latents=latents, positive=captions, steps=2, density=2.0, learning_rate=1e-3
        )

    return peak


@pytest.fixture(scope="module")
def peak_in_bf16(peak_of_a_run, tmp_path_factory):
    with torch.inference_mode():
        return peak_of_a_run(quantised_models.model("bf16", "Flux", tmp_path_factory.mktemp("bf16")))


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_than_one_weight_is_dequantised_at_a_time(peak_of_a_run, peak_in_bf16, tmp_path, kind):
    with torch.inference_mode():
        model = quantised_models.model(kind, "Flux", tmp_path)
        largest = max(weight.shape.numel() for weight in model.model.diffusion_model.parameters()) * 4
        peak = peak_of_a_run(model)
    assert peak <= peak_in_bf16 + ONE_WEIGHT * largest


@pytest.mark.parametrize("kind", ["fp8 e4m3", "fp8 scaled", "nvfp4", "GGUF Q4_0"])
def test_what_a_run_takes_is_foretold(comfy, tmp_path, kind):
    """Weights as they are stored, and beside the activations one weight dequantised."""
    estimates = {}
    for each in ("bf16", kind):
        with torch.inference_mode():
            model = quantised_models.model(each, "Flux", tmp_path)
            load(model)
        isolation = comfy.pack_module("nodes.host.training.isolation")
        with torch.inference_mode(False), torch.enable_grad():
            with isolation.training_model(model, {"density": 0.02}, (1, *FAMILY.latent)) as training:
                estimates[each] = estimate(comfy, training)
        stored = {part.untyped_storage()._cdata: part.untyped_storage().nbytes() for part in all_parts(model)}
        assert estimates[each].weights == sum(stored.values())
        unload()
    largest = max(weight.shape.numel() for weight in model.model.diffusion_model.parameters()) * 4
    more = estimates[kind].activations - estimates["bf16"].activations
    assert abs(more) <= 1.5 * largest


def all_parts(model):
    return [part for tensor in [*model.model.parameters(), *model.model.buffers()] for part in strided_parts(tensor)]


def estimate(comfy, training):
    """Of a training with one image and a short caption."""
    (caption, options), = FAMILY.captions(1)
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(FAMILY.latents(1), [[caption[:, :8], options]])
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(training.patcher, pairs, seed=0)
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(training.patcher)
    network = comfy.pack_module("nodes.host.training.network").HostNetwork(denoiser)
    loss = comfy.pack_module("sara_core.data.denoising_loss").DenoisingLoss(network, samples, 1, 0)
    loop = comfy.pack_module("sara_core.training.loop")
    optimizer = torch.optim.AdamW([training.store.values])
    run = loop.Training(training.store, optimizer, loss, loop.TrainingSettings(steps=1))
    return comfy.pack_module("nodes.host.training.estimate").estimate(training, run)
