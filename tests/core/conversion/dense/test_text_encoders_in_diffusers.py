"""LoRAs with text encoders as diffusers' pipelines load them: each layer of each encoder has its change."""

import pytest
import torch

from sara_core import SparseDelta, SparseEntry
from sara_core.conversion.write import write_delta
from tests.support import tiny_diffusers

ENCODERS = {"SD1.5": {"clip_l": "text_encoder"}, "SDXL": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}}
LAYERS = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
# Before a layer's name here; in the encoder that diffusers loads it may be missing (transformers 5).
INNER = "text_model."


def layers_of(encoder):
    """Name as everywhere → module, of the layers that LoRAs of text encoders are on."""
    modules = {name if name.startswith(INNER) else INNER + name: module for name, module in encoder.named_modules()}
    return {name: module for name, module in modules.items() if name.endswith(LAYERS)}


@pytest.mark.parametrize("family", list(ENCODERS))
def test_every_layer_of_every_text_encoder_has_its_change(tmp_path, family):
    make = {"SD1.5": tiny_diffusers.pipeline, "SDXL": tiny_diffusers.sdxl_pipeline}[family]
    pipeline, generator, entries, before = make(tmp_path), torch.Generator().manual_seed(0), {}, {}
    unet = pipeline.unet.state_dict()
    for name, attribute in ENCODERS[family].items():
        for layer, module in layers_of(getattr(pipeline, attribute)).items():
            weight = module.weight.detach()
            before[attribute, layer] = weight.clone()
            places = torch.randperm(weight.numel(), generator=generator)[:20].sort().values.to(torch.int32)
            entries[f"text_encoders.{name}.transformer.{layer}.weight"] = SparseEntry(
                places, torch.randn(20, generator=generator), tuple(weight.shape)
            )
    delta = SparseDelta(entries, {"sara.family": family})
    report = write_delta(delta, tmp_path / "lora.safetensors", "lora", rank=64, reader="diffusers")
    assert "Left out" not in report
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"), adapter_name="tried")
    pipeline.fuse_lora(components=list(ENCODERS[family].values()))
    pipeline.unload_lora_weights()
    for name, attribute in ENCODERS[family].items():
        for layer, module in layers_of(getattr(pipeline, attribute)).items():
            places, values, _ = entries[f"text_encoders.{name}.transformer.{layer}.weight"]
            found = module.weight.detach() - before[attribute, layer]
            wanted = torch.zeros_like(found)
            wanted.view(-1)[places.long()] = values
            assert (found - wanted).norm() < 2e-3 * wanted.norm(), (attribute, layer)
    assert all(torch.equal(weight, unet[name]) for name, weight in pipeline.unet.state_dict().items())
