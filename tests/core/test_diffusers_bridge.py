"""Deltas in diffusers models: loaded exactly, taken off to the last bit, trained there, and understood by ComfyUI."""

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import peft
import pytest
import torch

from sara_core import DeltaError, SaRA, SparseDelta, SparseEntry, UnsupportedModelError, extract
from sara_core.delta.translate import dense_to_comfy, dense_to_diffusers
from sara_core.diffusers_bridge import comfyui_delta, load_delta
from sara_core.names.diffusers import diffusers_parts
from tests.support import tiny_diffusers, toy_models
from tests.support.small_models import every_bit, same_bits

ROOT = Path(__file__).resolve().parents[2]
UNETS = {"SD": tiny_diffusers.unet, "SDXL": tiny_diffusers.sdxl}
MODELS = {**UNETS, "SD3": tiny_diffusers.sd3, "Flux": tiny_diffusers.flux}


def comfyui_weights(model):
    """The model's weights of more than one dimension under ComfyUI's names, fused ones as one tensor."""
    own = model.state_dict()
    parts = diffusers_parts({name: tuple(tensor.shape) for name, tensor in own.items()})
    assert parts.keys() == own.keys()
    whole = {}
    for name, part in sorted(parts.items(), key=lambda item: item[1].first):
        whole.setdefault(part.name, []).append(dense_to_comfy(own[name], part))
    return {f"diffusion_model.{name}": torch.cat(pieces) for name, pieces in whole.items() if pieces[0].dim() > 1}


def random_delta(model, seed=0):
    """Changes of one per cent of every such weight, with ComfyUI's names."""
    return SparseDelta(
        {name: SparseEntry(*entry)
         for name, entry in toy_models.delta_entries(comfyui_weights(model), 0.01, seed).items()}
    )  # fmt: skip


def expected_bits(model, delta, strength):
    """The model's parameters as they must be with the delta, computed from whole weights."""
    own = every_bit(model)
    changed = toy_models.expected_weights(comfyui_weights(model), delta, strength)
    parts = diffusers_parts({name: tuple(tensor.shape) for name, tensor in own.items()})
    for name, part in parts.items():
        if f"diffusion_model.{part.name}" in changed:
            own[name] = dense_to_diffusers(changed[f"diffusion_model.{part.name}"], part).contiguous()
    return own


def train(model, steps=2):
    """The one line in a loop as everyone writes it."""
    optimizer = SaRA(model, density=0.05, lr=1e-2)
    for _ in range(steps):
        model(**tiny_diffusers.inputs(model)).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_delta_changes_exactly_what_it_says_and_every_bit_comes_back(name, dtype, tmp_path):
    model = MODELS[name]().to(dtype)
    before, delta = every_bit(model), random_delta(model)
    delta.save(tmp_path / "style.safetensors")
    with_delta = expected_bits(model, delta, 0.7)
    pipeline = SimpleNamespace(**{"unet" if name in UNETS else "transformer": model})
    handle = load_delta(pipeline, tmp_path / "style.safetensors", strength=0.7)
    assert same_bits(every_bit(model), with_delta) and not same_bits(before, with_delta)
    handle.remove()
    assert same_bits(every_bit(model), before)


@pytest.mark.bits
def test_deltas_stack_and_come_off_one_by_one(tmp_path):
    pipeline = tiny_diffusers.pipeline(tmp_path)
    model = pipeline.unet
    before = every_bit(model)
    first = load_delta(pipeline, random_delta(model, 1))
    between = every_bit(model)
    second = load_delta(pipeline, random_delta(model, 2), strength=-0.5)
    with pytest.raises(DeltaError, match="remove the later one first"):
        first.remove()
    second.remove()
    assert same_bits(every_bit(model), between)
    first.remove()
    assert same_bits(every_bit(model), before)


def test_strength_zero_writes_nothing():
    model = tiny_diffusers.flux()
    before = every_bit(model)
    load_delta(model, random_delta(model), strength=0.0)
    assert same_bits(every_bit(model), before)


@pytest.mark.bits
@pytest.mark.parametrize("name", MODELS)
def test_what_was_trained_loads_into_a_fresh_model_bit_for_bit(name, tmp_path):
    model = MODELS[name]()
    optimizer = train(model)
    assert optimizer.values.detach().abs().max() > 1e-3
    saved = comfyui_delta(model, optimizer.delta())
    assert saved.nnz == optimizer.delta().nnz and set(saved.entries) <= set(comfyui_weights(model))
    saved.save(tmp_path / "trained.safetensors")
    own = optimizer.delta()
    optimizer.detach()
    for delta in (tmp_path / "trained.safetensors", own):
        fresh = MODELS[name]()
        load_delta(fresh, delta)
        assert same_bits(every_bit(fresh), every_bit(model))


def test_a_delta_goes_under_a_lora():
    plain, model = tiny_diffusers.unet(), tiny_diffusers.unet()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    delta = random_delta(plain)
    load_delta(plain, delta)
    load_delta(model, delta)
    changed = {name.replace(".base_layer.", "."): weight for name, weight in every_bit(model).items()}
    assert all(torch.equal(weight, changed[name]) for name, weight in every_bit(plain).items())


@pytest.mark.bits
def test_what_was_trained_beside_a_lora_has_the_plain_model_s_names_and_loads_back(tmp_path):
    torch.manual_seed(3)
    model = tiny_diffusers.unet()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False))
    before = every_bit(model)
    optimizer = train(model)
    own, saved = optimizer.delta(), comfyui_delta(model, optimizer.delta())
    assert set(own.entries) <= set(tiny_diffusers.unet().state_dict())
    assert set(saved.entries) <= set(comfyui_weights(tiny_diffusers.unet())) and saved.nnz == own.nnz
    saved.save(tmp_path / "trained.safetensors")
    trained = every_bit(model)
    optimizer.detach(restore=True)
    assert same_bits(every_bit(model), before)
    plain = tiny_diffusers.unet()
    for delta in (tmp_path / "trained.safetensors", own):
        handle = load_delta(model, delta)
        assert same_bits(every_bit(model), trained)
        handle.remove()
        assert same_bits(every_bit(model), before)
        handle = load_delta(plain, delta)
        changed = {key.replace(".base_layer.", "."): tensor for key, tensor in trained.items()}
        assert all(torch.equal(tensor, changed[key]) for key, tensor in every_bit(plain).items())
        handle.remove()


@pytest.mark.parametrize("compiled", [
    lambda unet: torch.compile(unet, backend="eager"), lambda unet: unet.compile(backend="eager") or unet,
])  # fmt: skip
def test_a_compiled_unet_of_a_pipeline_computes_with_the_delta(compiled, tmp_path):
    pipeline, plain = tiny_diffusers.pipeline(tmp_path), tiny_diffusers.unet()
    before, delta = every_bit(plain), random_delta(plain)
    pipeline.unet = compiled(pipeline.unet)
    inputs = tiny_diffusers.inputs(plain)
    with torch.no_grad():
        pipeline.unet(**inputs)
        load_delta(plain, delta)
        handle = load_delta(pipeline, delta)
        assert torch.equal(pipeline.unet(**inputs).sample, plain(**inputs).sample)
    handle.remove()
    assert same_bits(every_bit(getattr(pipeline.unet, "_orig_mod", pipeline.unet)), before)


def test_the_delta_of_a_model_trained_before_it_was_compiled_gets_its_names():
    model = tiny_diffusers.unet()
    delta = train(model).delta()
    compiled = SimpleNamespace(unet=torch.compile(model, backend="eager"))
    assert comfyui_delta(compiled, delta).entries.keys() == comfyui_delta(model, delta).entries.keys()


def in_parallel(model):
    return torch.nn.DataParallel(model)


def with_checkpoints(model):
    from diffusers.models.attention import BasicTransformerBlock
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, BasicTransformerBlock))
    return model


@pytest.mark.parametrize("wrapped", [in_parallel, with_checkpoints])
def test_what_torch_puts_around_a_model_is_looked_through(wrapped):
    plain, model = tiny_diffusers.unet(), wrapped(tiny_diffusers.unet())
    optimizer = SaRA(model, density=0.1)
    assert comfyui_delta(model, optimizer.delta()).entries.keys() == (
        comfyui_delta(plain, SaRA(plain, density=0.1).delta()).entries.keys()
    )
    optimizer.detach()
    before = every_bit(model)
    handle = load_delta(model, random_delta(tiny_diffusers.unet()))
    assert not same_bits(every_bit(model), before)
    handle.remove()
    assert same_bits(every_bit(model), before)


@pytest.mark.parametrize("part, other", [("unet", "transformer"), ("transformer", "unet")])
def test_a_delta_is_of_the_pipeline_s_model_whatever_its_truth_value(part, other):
    class Counted(torch.nn.Linear):
        def __len__(self):
            return 0

    model = Counted(2, 2)
    entry = SparseEntry(torch.tensor([0], dtype=torch.int32), torch.ones(1), (2, 2))
    before = model.weight.detach().clone()
    load_delta(SimpleNamespace(**{part: model, other: None}), SparseDelta({"weight": entry}))
    assert (model.weight != before).sum() == 1


def test_a_delta_of_another_model_is_refused_and_changes_nothing():
    model = tiny_diffusers.unet()
    before = every_bit(model)
    wider = diffusers.UNet2DConditionModel(**{**tiny_diffusers.UNET, "cross_attention_dim": 48})
    with pytest.raises(DeltaError, match="None of the delta's"):
        load_delta(model, random_delta(tiny_diffusers.sd3()))
    with pytest.raises(DeltaError, match="was made for .* It belongs to another model"):
        load_delta(model, random_delta(wider))
    assert same_bits(every_bit(model), before)


def test_what_a_model_has_beside_its_family_s_weights_loads_back(tmp_path):
    """AnimateDiff's motion modules, which ComfyUI's UNet does not have."""
    model = tiny_diffusers.motion_unet()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += torch.randn_like(parameter) / 64
    model.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned").save(tmp_path / "delta.safetensors")

    before = every_bit(model)
    handle = load_delta(model, tmp_path / "delta.safetensors")

    assert same_bits(every_bit(model), every_bit(tuned))
    handle.remove()
    assert same_bits(every_bit(model), before)


def test_a_pipeline_without_unet_and_transformer_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="SimpleNamespace has no UNet"):
        load_delta(SimpleNamespace(vae=torch.nn.Linear(1, 1)), SparseDelta({}))


def test_a_model_that_comfyui_has_other_unknown_names_for_is_refused_by_its_class():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    delta = SaRA(model, density=0.5).delta()
    with pytest.raises(UnsupportedModelError, match="ComfyUI's names for the weights of a Sequential"):
        comfyui_delta(model, delta)


def test_comfyui_loads_what_was_trained_in_diffusers(comfy):
    """The same weights, to the bit, in a MODEL that ComfyUI has made of the same base."""
    from comfy.sd import load_diffusion_model_state_dict

    config = {"block_out_channels": (320,), "down_block_types": ("CrossAttnDownBlock2D",), "layers_per_block": 1,
              "up_block_types": ("CrossAttnUpBlock2D",), "cross_attention_dim": 768}  # fmt: skip
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**config)
    parts = diffusers_parts({name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()})
    base = {part.name: unet.state_dict()[name].clone() for name, part in parts.items()}
    with torch.inference_mode():
        model = load_diffusion_model_state_dict(base, model_options={"dtype": torch.float32})
    optimizer = SaRA(unet, density=0.01, lr=1e-2)
    text = torch.randn(1, 2, 768, generator=torch.Generator().manual_seed(1))
    unet(torch.ones(1, 4, 8, 8), 500, text).sample.square().mean().backward()
    optimizer.step()
    delta = comfyui_delta(unet, optimizer.delta())
    assert delta.metadata["sara.family"] == "SD1.5"
    optimizer.detach()
    delta.save(comfy.base / "models" / "sara" / "from-diffusers.safetensors")
    inputs = {"sara_name": "from-diffusers.safetensors", "strength": 1.0}
    patched = comfy.execute("SaRALoader", model=model, **inputs).outputs[0]
    loaded = toy_models.loaded_weights(patched)
    for name, weight in unet.state_dict().items():
        assert torch.equal(loaded[f"diffusion_model.{parts[name].name}"], weight), name
    toy_models.unload()


def test_the_library_alone_does_not_import_diffusers():
    script = (
        "import sys, sara_core, sara_core.diffusers_bridge, sara_core.__main__\n"
        "assert not {'diffusers', 'transformers', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
