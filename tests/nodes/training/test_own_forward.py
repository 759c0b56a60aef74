"""MODELs whose layers compute by methods of their own: what an earlier prompt left there is no matter, what this one
has put there is refused by name."""

import types

import pytest
import torch

from tests.support import toy_models
from tests.support.adapter_files import lora
from tests.support.toy_training import train

# Small modules of the toy model with rows and columns of their weights, by their names in LoRA files.
LORA = {
    f"lora_unet_{module}{key}": 0.3 * tensor
    for module, rows, columns in (
        ("time_embed_0", 1280, 320), ("input_blocks_1_1_transformer_blocks_0_attn1_to_q", 320, 320),
    )
    for key, tensor in lora(rows, columns).items()
}  # fmt: skip


@pytest.fixture
def model(comfy):
    with torch.inference_mode():
        return toy_models.sd15_model()


@pytest.fixture
def bypassed(comfy, model):
    """The MODEL with a LoRA as "Load LoRA (Bypass)" puts it there."""
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass mode")
    with torch.inference_mode():
        return comfy.sd.load_bypass_lora_for_models(model, None, LORA, 1.0, 0.0)[0]


def sample(comfy, model, data):
    latents, captions = data
    return comfy.execute(
        "KSampler", model=model, positive=captions[0], negative=captions[0], latent_image=latents[0],
        seed=1, steps=1, cfg=1.0,
    ).outputs[0]["samples"]  # fmt: skip


def losses(comfy, model, data):
    return train(comfy, model, data, density=0.1)[1]["loss"]


@pytest.mark.bits
def test_after_a_lora_in_bypass_mode_was_drawn_the_plain_model_trains_as_a_fresh_one(comfy, model, bypassed, data):
    with torch.inference_mode():
        expected = losses(comfy, toy_models.sd15_model(), data)
    with_lora, plain = sample(comfy, bypassed, data), sample(comfy, model, data)
    assert not torch.equal(with_lora, plain)
    layer = model.model.diffusion_model.time_embed[0]
    assert "forward" in layer.__dict__
    assert losses(comfy, model, data) == expected
    assert layer.__dict__["forward"] == types.MethodType(type(layer).forward, layer)
    assert torch.equal(sample(comfy, model, data), plain)
    assert torch.equal(sample(comfy, bypassed, data), with_lora)
    assert losses(comfy, model, data) == expected


@pytest.mark.parametrize("drawn_before", [False, True])
def test_a_lora_in_bypass_mode_is_refused_with_the_remedy(comfy, model, bypassed, data, drawn_before):
    if drawn_before:
        sample(comfy, bypassed, data)
    with pytest.raises(Exception, match="LoRA in bypass mode .on 'time_embed.0'.*Load LoRA in place of"):
        losses(comfy, bypassed, data)


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_a_layer_that_a_node_has_changed_is_refused_by_name(comfy, model, data, method):
    layer = model.model.diffusion_model.input_blocks[0][0]
    own = getattr(layer, method)
    layer.__dict__[method] = lambda *inputs: own(*inputs) * 2
    with pytest.raises(Exception, match="A node has changed how the layer 'input_blocks.0.0' .* computes"):
        losses(comfy, model, data)


def test_a_layer_of_a_class_that_computes_in_its_own_way_is_refused_by_name(comfy, model, data):
    layer = model.model.diffusion_model.time_embed[2]

    class Doubled(type(layer)):
        def forward_comfy_cast_weights(self, x):
            return 2 * super().forward_comfy_cast_weights(x)

    layer.__class__ = Doubled
    with pytest.raises(Exception, match="The layer 'time_embed.2' of this MODEL is a Doubled"):
        losses(comfy, model, data)


def test_a_block_that_a_node_has_wrapped_is_trained_through(comfy, model, data):
    """As nodes do that skip blocks, or watch them."""
    expected = losses(comfy, model, data)
    block = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0]
    own, calls = block.forward, []

    def counted(*args, **kwargs):
        calls.append(args)
        return own(*args, **kwargs)

    block.forward = counted
    assert losses(comfy, model, data) == expected and calls
    assert block.__dict__["forward"] is counted
