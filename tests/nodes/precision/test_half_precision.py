"""Quantised models that compute in bf16 or fp16, as on nearly every GPU: trained, and with a delta on them."""

import pytest
import torch

from tests.nodes.precision.test_apply import applied
from tests.nodes.precision.test_train_gradients import dense_loss_and_gradients, dense_model, host_loss, trained
from tests.nodes.precision.test_train_node import assert_untouched, contents, loaded
from tests.support import quantised_models
from tests.support.quantised_effects import delta_of, dense, layer_outputs, share_and_noise
from tests.support.quantised_models import LAYOUTS, output
from tests.support.toy_models import unload

# What rounding to it leaves of a gradient's share, and adds to it as noise.
HALVES = {torch.bfloat16: (0.03, 0.06), torch.float16: (0.003, 0.006)}
# By a weight function, with blocks of scales, beside the host's product, and as the pack's patches.
KINDS = ["fp8 scaled", "nvfp4", "int8", "GGUF Q4_0"]
FAMILY = "Z-Image"
LAYER = "diffusion_model.layers.0.feed_forward.w1"
# So that the smallest gradients are no zeros in fp16.
LOSS_SCALE = 2**12


@pytest.fixture
def model(tmp_path, kind, dtype):
    with torch.inference_mode():
        model = quantised_models.model(kind, FAMILY, tmp_path)
        model.set_model_compute_dtype(dtype)
        yield loaded(model)
        unload()


@pytest.fixture(scope="module")
def expected(comfy):
    """Of each kind, what autograd makes of the dequantised model in fp32; made once, for it takes time."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = dense_loss_and_gradients(comfy, dense_model(kind, FAMILY), LAYOUTS[FAMILY])
        return made[kind]

    return of


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dequantised_model_but_for_rounding(comfy, model, expected, kind, dtype):
    before, computed_in, (of_share, most_noise) = contents(model), set(), HALVES[dtype]
    with torch.inference_mode(False), torch.enable_grad():
        wanted, weights = expected(kind)
        with trained(comfy, model, FAMILY) as training:
            layer = training.patcher.model.get_submodule(LAYER)
            hook = layer.register_forward_hook(lambda module, given, result: computed_in.add(result.dtype))
            loss = host_loss(comfy, training.patcher, LAYOUTS[FAMILY])
            (LOSS_SCALE * loss).backward()
            hook.remove()
            for segment in training.store.support:
                gradient = weights[segment.name].grad.flatten()[segment.flat()]
                found = training.store.values.grad[segment.span] / LOSS_SCALE
                share, noise = share_and_noise(found, gradient)
                assert abs(share - 1) < of_share and noise < most_noise, segment.name
    assert torch.allclose(loss, wanted, rtol=3e-3) and computed_in == {dtype}
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_nothing_changes_no_bit_and_another_arrives(comfy, model, kind, dtype):
    delta, (of_share, most_noise) = delta_of(comfy.pack_module("sara_core.delta"), FAMILY), HALVES[dtype]
    before = output(model, FAMILY)
    with torch.inference_mode():
        assert torch.equal(output(applied(comfy, model, 0.0 * delta), FAMILY), before)
        patched, change = applied(comfy, model, delta, 3.0), 3.0 * dense(delta.entries[f"{LAYER}.weight"])
        plain, changed = (layer_outputs(one, [LAYER], dtype=dtype)[LAYER] for one in (model, patched))
    assert changed.dtype == dtype
    x = torch.randn(64, change.shape[1], generator=torch.Generator().manual_seed(5)).to(dtype).float()
    share, noise = share_and_noise((changed - plain).float(), x @ change.T)
    assert abs(share - 1) < of_share and noise < most_noise
