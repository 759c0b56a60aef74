"""Deltas on modules that carry adapters, are compiled in part, compute with copies or are kept elsewhere."""

import gc
import weakref

import diffusers
import peft
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from sara_core import DeltaError, SparseDelta, SparseEntry, UnsupportedModelError
from sara_core.delta import fused
from sara_core.delta.own_weights import OwnWeights
from tests.support import tiny_diffusers
from tests.support.small_models import every_bit, same_bits

CPU = torch.device("cpu")
TARGETS = ["to_q", "to_v", "conv1"]
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"


def lora(model, name="default", **options):
    model.add_adapter(peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **options), name)
    return model


def delta_of(model, value=0.5):
    """A change of the first elements of every weight of a plain model with two sides or more."""
    entries = {}
    for name, weight in model.state_dict().items():
        if weight.dim() > 1:
            indices = torch.arange(0, weight.numel(), 7, dtype=torch.int32)
            entries[name] = SparseEntry(indices, torch.full((len(indices),), value), tuple(weight.shape))
    return SparseDelta(entries)


def predicted(model):
    with torch.no_grad():
        return model(**tiny_diffusers.inputs(model)).sample


ADAPTED = {
    "LoRA": lora,
    "two LoRAs": lambda model: lora(lora(model), "second"),
    "DoRA": lambda model: lora(model, use_dora=True),
    "modules_to_save that are off": lambda model: switched_off(lora(model, modules_to_save=["conv_in"])),
    "PeftModel": lambda model: peft.get_peft_model(model, peft.LoHaConfig(r=2, target_modules=["to_q"])),
    "SHiRA": lambda model: peft.get_peft_model(model, peft.ShiraConfig(r=2, target_modules=["to_q"])),
    "a compiled block": lambda model: with_compiled_block(model),
    "several blocks compiled": lambda model: model.compile_repeated_blocks(backend="eager") or model,
}


def switched_off(model):
    model.conv_in.enable_adapters(False)
    return model


def with_compiled_block(model):
    model.down_blocks[0] = torch.compile(model.down_blocks[0], backend="eager")
    return model


@pytest.mark.parametrize("name", ADAPTED)
def test_names_are_those_of_the_plain_model(name):
    plain, model = tiny_diffusers.unet(), ADAPTED[name](tiny_diffusers.unet())
    own = OwnWeights(model)
    assert own.tensors.keys() == plain.state_dict().keys()
    assert all(torch.equal(own.tensors[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("name", ADAPTED)
def test_a_delta_changes_the_own_weights_and_comes_off(name):
    plain, model = tiny_diffusers.unet(), ADAPTED[name](tiny_diffusers.unet())
    before, delta = every_bit(model), delta_of(plain)
    delta.apply_(plain)
    handle = delta.apply_(model)
    own = OwnWeights(model).tensors
    assert all(torch.equal(own[name], tensor) for name, tensor in plain.state_dict().items())
    handle.remove()
    assert same_bits(every_bit(model), before)


def test_names_that_only_look_like_peft_s_stay():
    model = nn.ModuleDict({"base_layer": nn.Linear(2, 2), "original_module": nn.Linear(2, 2)})
    assert OwnWeights(nn.ModuleDict({"level": model})).tensors.keys() == {
        f"level.{name}.{kind}" for name in ("base_layer", "original_module") for kind in ("weight", "bias")
    }


def test_a_weight_in_whose_place_an_adapter_computes_is_refused_by_name():
    model = lora(tiny_diffusers.unet(), modules_to_save=["conv_in"])
    before, delta = every_bit(model), delta_of(tiny_diffusers.unet())
    with pytest.raises(UnsupportedModelError, match="'default' has put .* of 'conv_in.weight' .modules_to_save"):
        delta.apply_(model)
    assert same_bits(every_bit(model), before)
    others = {name: entry for name, entry in delta.entries.items() if not name.startswith("conv_in")}
    SparseDelta(others).apply_(model)
    switched_off(model)
    SparseDelta({"conv_in.weight": delta.entries["conv_in.weight"]}).apply_(model)


FUSED = {
    "SD": tiny_diffusers.unet,
    "SDXL": tiny_diffusers.sdxl,
    "Flux": tiny_diffusers.flux,
    "biases": lambda: _sd3(dual_attention_layers=(), qk_norm=None),
}


def _sd3(**options):
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(**{**tiny_diffusers.SD3, **options}).eval()


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_model_computes_with_the_whole_change(name):
    plain, model = FUSED[name](), FUSED[name]()
    model.fuse_qkv_projections()
    before, bits = predicted(model), every_bit(model)
    torch.testing.assert_close(before, predicted(plain))
    delta = _biases_too(plain)
    delta.apply_(plain, 0.7)
    handle = delta.apply_(model, 0.7)
    assert not torch.allclose(predicted(plain), before, atol=1e-3)
    torch.testing.assert_close(predicted(model), predicted(plain))
    handle.set_strength(0.2)
    handle.remove()
    assert same_bits(every_bit(model), bits)


def _biases_too(plain):
    entries = dict(delta_of(plain, 0.05).entries)
    for name, tensor in plain.state_dict().items():
        if name.endswith(("to_k.bias", "add_v_proj.bias")):
            entries[name] = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([0.5]), tuple(tensor.shape))
    return SparseDelta(entries)


def test_a_change_of_one_of_the_fused_weights_lies_in_its_rows():
    model = tiny_diffusers.unet()
    model.fuse_qkv_projections()
    key = QUERY.replace("to_q", "to_k")
    shape = tuple(model.state_dict()[key].shape)
    fused = model.get_submodule(QUERY.removesuffix(".to_q.weight")).to_qkv.weight
    before = fused.detach().clone()
    SparseDelta({key: SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([2.0]), shape)}).apply_(model)
    changed = (fused.detach() != before).nonzero()
    assert changed.tolist() == [[shape[0], 3]]


def test_a_model_that_was_fused_meanwhile_keeps_the_delta_until_it_is_unfused():
    model = tiny_diffusers.flux()
    before, delta = every_bit(model), delta_of(model)
    handle = delta.apply_(model)
    with_delta = predicted(model)
    model.fuse_qkv_projections()
    with pytest.raises(UnsupportedModelError, match="fused .* call unfuse_qkv_projections"):
        handle.remove()
    torch.testing.assert_close(predicted(model), with_delta)
    model.unfuse_qkv_projections()
    handle.remove()
    assert same_bits(every_bit(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_that_was_fused_meanwhile_has_to_be_unfused_first(dtype):
    model = lora(tiny_diffusers.unet().to(dtype))
    own = every_bit(model)
    handle = delta_of(tiny_diffusers.unet()).apply_(model)
    model.fuse_lora()
    fused = every_bit(model)
    for change in (handle.remove, lambda: handle.set_strength(0.5)):
        with pytest.raises(DeltaError, match="Something else has changed the same weights.*LoRA that was fused"):
            change()
    assert same_bits(every_bit(model), fused)
    model.unfuse_lora()
    handle.remove()
    name = QUERY.replace(".weight", ".base_layer.weight")
    assert torch.equal(every_bit(model)[name].view(-1)[::7], own[name].view(-1)[::7])


def test_weights_on_the_disk_are_refused_and_nothing_is_lost_by_offloading_afterwards(tmp_path):
    model, plain = tiny_diffusers.unet(), tiny_diffusers.unet()
    delta = delta_of(plain)
    delta.apply_(plain)
    handle = delta.apply_(model)
    options = {"onload_device": CPU, "offload_device": CPU, "offload_type": "leaf_level"}
    apply_group_offloading(model, **options, offload_to_disk_path=str(tmp_path))
    torch.testing.assert_close(predicted(model), predicted(plain))
    for change in (handle.remove, lambda: delta.apply_(model)):
        with pytest.raises(UnsupportedModelError, match="kept on the disk"):
            change()
    torch.testing.assert_close(predicted(model), predicted(plain))


class StoredInParts(nn.Linear):
    """As quanto stores its layers."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}weight._data"] = self.weight.to(torch.int8)
        destination[f"{prefix}weight._scale"] = torch.ones(1)


def test_a_weight_that_is_stored_in_parts_has_its_name():
    model = nn.ModuleDict({"layer": StoredInParts(2, 2, bias=False)})
    assert OwnWeights(model).tensors["layer.weight"] is model["layer"].weight


def test_a_handle_does_not_keep_its_model_alive():
    model = tiny_diffusers.unet()
    handle = delta_of(model).apply_(model)
    model = weakref.ref(model)
    gc.collect()
    assert model() is None
    handle.remove()


def test_stacked_changes_of_half_precision_are_in_single():
    half = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([0.5], dtype=torch.bfloat16), (2, 2))
    stacked = fused._stacked([(half, torch.Size((2, 2))), (half, torch.Size((2, 2)))])
    assert stacked.values.dtype == torch.float32 and stacked.indices.tolist() == [1, 5] and stacked.shape == (4, 2)
