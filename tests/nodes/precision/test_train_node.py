"""SaRA Train on models in every precision: the run, what it leaves of the MODEL, and what its delta is worth."""

import pytest
import torch

from tests.support import quantised_models
from tests.support.quantised_models import LAYOUTS
from tests.support.toy_models import unload

KINDS = [kind for kind in quantised_models.KINDS if kind != "bf16"]
STEPS = 3


def inputs(family, count=2):
    latents = [{"samples": latent} for latent in LAYOUTS[family].latents(count)]
    return latents, [[caption] for caption in LAYOUTS[family].captions(count)]


def train(comfy, model, family, **settings):
    latents, captions = inputs(family)
    settings = {"steps": STEPS, "density": 0.02, "learning_rate": 1e-3, **settings}
    return comfy.execute("SaRATrain", model=model, latents=latents, positive=captions, **settings).outputs


def contents(model):
    """Every tensor of a MODEL by its name, with its bytes, scales and whatever else it is made of."""
    found = {}
    for name, tensor in [*model.model.named_parameters(), *model.model.named_buffers()]:
        found[name] = [tensor, *(part.clone() for part in parts(tensor))]
    return found


def parts(tensor):
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor.detach().as_subclass(torch.Tensor)]


def assert_untouched(model, before):
    now = dict([*model.model.named_parameters(), *model.model.named_buffers()])
    assert now.keys() == before.keys()
    for name, (original, *copies) in before.items():
        assert now[name] is original, name
        for part, copy in zip(parts(original), copies, strict=True):
            before, after = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (copy, part))
            assert torch.equal(after, before), name


def dense_model(kind, family):
    """The fp32 MODEL that files of this kind are dequantised to."""
    import comfy.sd

    weights = quantised_models.references(kind, family)
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})


def loaded(model):
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    return model


@pytest.fixture(autouse=True)
def nothing_left_loaded(comfy):
    yield
    unload()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_what_one_on_the_dequantised_model_learns(comfy, tmp_path, kind):
    with torch.inference_mode():
        model = loaded(quantised_models.model(kind, "Flux", tmp_path))
        dense = dense_model(kind, "Flux")
        before = contents(model)
        found, losses = train(comfy, model, "Flux")
        assert_untouched(model, before)
        expected, dense_losses = train(comfy, dense, "Flux")
    assert losses["loss"] == pytest.approx(dense_losses["loss"], rel=1e-4)
    assert found.entries.keys() == expected.entries.keys()
    for name, entry in expected.entries.items():
        assert torch.equal(found.entries[name].indices, entry.indices), name
        assert (found.entries[name].values - entry.values).norm() <= 1e-2 * entry.values.norm(), name
