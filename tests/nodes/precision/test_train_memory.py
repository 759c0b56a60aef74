"""What training on quantised weights takes: never more than one of them dequantised, and what was foretold."""

import pytest
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tests.nodes.loading.test_apply_memory import AliveBytes
from tests.support import quantised_models
from tests.support.quantised_models import LAYOUTS
from tests.support.toy_models import unload

FAMILY = LAYOUTS["Flux"]
# Kinds that the host dequantises by a product take its factors too while it is made: of one weight.
FACTORS = 2
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
    elif value.layout is torch.strided:
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
    captions = [[caption] for caption in FAMILY.captions(1)]

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
            "SaRATrain", model=model, latents=latents, positive=captions, steps=2, density=0.02, learning_rate=1e-3
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
    print("ROWP", kind, peak, peak_in_bf16, (peak - peak_in_bf16) / largest)
    assert peak <= peak_in_bf16 + FACTORS * largest
