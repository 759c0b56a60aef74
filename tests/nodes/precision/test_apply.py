"""SaRA Loader and Apply on quantised weights: the whole change arrives, and nothing else of the model moves."""

import pytest
import torch

from tests.support import quantised_models
from tests.support.quantised_effects import delta_of, dense, is_whole, layer_outputs, quantised_layers
from tests.support.quantised_models import KINDS, output
from tests.support.toy_models import unload

QUANTISED = [kind for kind in KINDS if kind != "bf16"]
STRENGTH = 0.7


@pytest.fixture(scope="module")
def pack(comfy):
    yield comfy.pack_module("sara_core.delta")
    unload()


@pytest.fixture(scope="module")
def model_of(comfy, tmp_path_factory):
    """One MODEL per kind and family."""
    made = {}

    def model(kind, family="Flux"):
        if (kind, family) not in made:
            made[kind, family] = quantised_models.model(kind, family, tmp_path_factory.mktemp("quantised"))
        return made[kind, family]

    return model


def applied(comfy, model, delta, strength=STRENGTH):
    return comfy.execute("SaRAApply", model=model, delta=delta, strength=strength).outputs[0]


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_whole_change_arrives_in_every_layer(comfy, pack, model_of, kind):
    model, delta, names = model_of(kind), delta_of(pack), quantised_layers()
    before = layer_outputs(model, names)
    after = layer_outputs(applied(comfy, model, delta), names)
    for name in names:
        generator = torch.Generator().manual_seed(5)
        change = dense(delta.entries[f"{name}.weight"])
        wanted = STRENGTH * torch.randn(64, change.shape[1], generator=generator) @ change.T
        assert is_whole(after[name] - before[name], wanted), name


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_change_of_zero_leaves_every_bit_of_the_output(comfy, pack, model_of, kind):
    model = model_of(kind)
    before = output(model, "Flux")
    assert torch.equal(output(applied(comfy, model, delta_of(pack, scale=0.0)), "Flux"), before)
    changed = output(applied(comfy, model, delta_of(pack)), "Flux")
    assert not torch.equal(changed, before)
    assert torch.equal(output(model, "Flux"), before)


@pytest.mark.parametrize("family", ["SD1.5", "Z-Image"])
@pytest.mark.parametrize("kind", ["fp8 e4m3", "fp8 scaled by 1", "nvfp4", "GGUF Q4_0"])
def test_the_output_is_that_of_the_dequantised_weights_with_the_change(comfy, pack, model_of, kind, family):
    from comfy.sd import load_diffusion_model_state_dict

    delta, weights = delta_of(pack, family), quantised_models.references(kind, family)
    for name, entry in delta.entries.items():
        weights[name.removeprefix("diffusion_model.")] += STRENGTH * dense(entry)
    with quantised_models.recognised(family):
        reference = load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})
    expected = output(reference, family)
    found = output(applied(comfy, model_of(kind, family), delta), family)
    assert (found - expected).norm() < 2e-4 * expected.norm()
