"""SaRA files in the stock loaders, and patched models in the stock nodes that save, merge and train."""

import inspect
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.toy_models import (
    assert_same_bits,
    changed,
    expected_weights,
    loaded_weights,
    sd15_unet_state_dict,
)

LORA_KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize("strength", [1.0, 0.4, -2.0])
@pytest.mark.parametrize("node", ["LoraLoader", "LoraLoaderModelOnly"])
def test_stock_loaders_give_the_same_bits(comfy, model, models, delta, saved, node, strength):
    clip = {"clip": None} if node == "LoraLoader" else {}
    stock = comfy.execute(node, model=model, lora_name=saved, strength_model=strength, **clip).outputs[0]
    assert_same_bits(loaded_weights(stock), expected_weights(models()[1], delta, strength))


def test_the_stock_loader_reports_no_key_as_not_loaded(comfy, model, saved, caplog):
    with caplog.at_level(logging.WARNING):
        comfy.execute("LoraLoaderModelOnly", model=model, lora_name=saved, strength_model=1.0)
    assert "not loaded" not in caplog.text.lower()


@pytest.fixture
def lora(comfy, models):
    """Name of a LoRA of one layer."""
    rows, columns = models()[1][LORA_KEY].shape
    generator = torch.Generator().manual_seed(3)
    stem = LORA_KEY.removesuffix(".weight")
    tensors = {
        f"{stem}.lora_up.weight": torch.randn(rows, 4, generator=generator) * 0.1,
        f"{stem}.lora_down.weight": torch.randn(4, columns, generator=generator) * 0.1,
        f"{stem}.alpha": torch.tensor(4.0),
    }
    path = comfy.base / "models" / "loras" / "plain.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path.name


@pytest.mark.parametrize("sara_first", [True, False])
@pytest.mark.parametrize("stock", [True, False])
def test_it_stacks_with_a_lora_in_either_order(comfy, model, models, delta, saved, lora, sara_first, stock):
    import comfy.lora as core

    def with_sara(model):
        if stock:
            return comfy.execute("LoraLoaderModelOnly", model=model, lora_name=saved, strength_model=0.7).outputs[0]
        return comfy.execute("SaRALoader", model=model, sara_name=saved, strength=0.7).outputs[0]

    def with_lora(model):
        return comfy.execute("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=0.9).outputs[0]

    stacked = with_lora(with_sara(model)) if sara_first else with_sara(with_lora(model))
    base = models()[1][LORA_KEY]
    lora_patches = with_lora(model).patches[LORA_KEY]

    def lora_on(weight):
        return core.calculate_weight(lora_patches, weight.clone(), LORA_KEY)

    entry = delta.entries[LORA_KEY]
    expected = lora_on(changed(base, entry, 0.7)) if sara_first else changed(lora_on(base), entry, 0.7)
    assert not torch.equal(lora_on(base), base)
    assert torch.equal(loaded_weights(stacked)[LORA_KEY], expected)


def test_two_deltas_stack(comfy, model, models, delta, saved):
    once = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=1.0).outputs[0]
    twice = comfy.execute("SaRAApply", model=once, delta=delta, strength=-0.5).outputs[0]
    base = expected_weights(models()[1], delta, 1.0)
    assert_same_bits(loaded_weights(twice), expected_weights(base, delta, -0.5))


@pytest.mark.parametrize("node", ["ModelSave", "CheckpointSave"])
def test_stock_save_writes_the_patched_weights(comfy, model, models, delta, saved, node):
    patched = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=1.0).outputs[0]
    rest = {"clip": None, "vae": None} if node == "CheckpointSave" else {}
    comfy.execute(node, model=patched, filename_prefix=f"saved/{node}", **rest)
    (path,) = (comfy.base / "output" / "saved").glob(f"{node}_*.safetensors")
    written = {name.removeprefix("model."): weight for name, weight in load_file(path).items()}
    expected = expected_weights(models()[1], delta, 1.0)
    network = {name: weight for name, weight in expected.items() if name.startswith("diffusion_model.")}
    assert len(network) == 80
    assert_same_bits({name: written[name] for name in network}, network)


def test_model_merge_simple_takes_a_share_of_the_delta(comfy, model, models, delta, saved):
    patched = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=1.0).outputs[0]
    merged = loaded_weights(comfy.execute("ModelMergeSimple", model1=model, model2=patched, ratio=0.25).outputs[0])
    base = models()[1]
    for name, entry in delta.entries.items():
        torch.testing.assert_close(merged[name], changed(base[name], entry, 0.75), rtol=0, atol=1e-6)


def outputs(model):
    """The network's output for a fixed input, as the sampler would get it."""
    generator = torch.Generator().manual_seed(0)
    latent, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 768, generator=generator)
    with torch.inference_mode():
        return model.model.apply_model(latent, torch.tensor([3.0]), c_crossattn=context)


def patched_modules(model):
    return [module for module in model.model.modules() if getattr(module, "weight_function", None)]


def test_low_vram_mode_computes_the_same(comfy, model, saved):
    patched = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=0.8).outputs[0]
    loaded_weights(patched)
    assert not patched_modules(patched)
    expected = outputs(patched)
    patched.detach()
    patched.load(torch.device("cpu"), lowvram_model_memory=1)
    try:
        assert len(patched_modules(patched)) > 10
        assert torch.equal(outputs(patched), expected)
        assert torch.equal(outputs(patched), expected)  # nothing accumulates
    finally:
        patched.detach()


def test_a_patch_rebuilt_on_another_device_computes_the_same(comfy, model, models, delta, pack):
    """With dynamic VRAM the host rebuilds adapters from tensors it has copied into a buffer of bytes."""
    import comfy.lora as core
    from comfy.model_patcher import LowVramPatch

    if not hasattr(LowVramPatch, "prepare"):
        pytest.skip("this ComfyUI is older than prepared patches")
    patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=0.8).outputs[0]
    patch = LowVramPatch(LORA_KEY, patched.patches)
    patch.prepare(torch.empty(patch.memory_required(), dtype=torch.uint8), None)
    rebuilt = patch.prepared_patches[0][1]
    assert type(rebuilt) is pack.patching.SaRAAdapter and rebuilt.weights[0][0].dtype == torch.int32
    base = models()[1][LORA_KEY]
    assert torch.equal(patch(base.clone()), changed(base, delta.entries[LORA_KEY], 0.8))
    assert torch.equal(
        core.calculate_weight(patched.patches[LORA_KEY], base.clone(), LORA_KEY),
        changed(base, delta.entries[LORA_KEY], 0.8),
    )


def weights_only(pack, delta):
    return pack.SparseDelta({name: entry for name, entry in delta.entries.items() if name.endswith(".weight")})


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_bypass_mode_computes_the_same_up_to_rounding(comfy, model, pack, delta, strength):
    path = comfy.base / "models" / "sara" / "weights_only.safetensors"
    weights = weights_only(pack, delta)
    weights.save(path)
    expected, plain = (
        outputs(_loaded(comfy.execute("SaRAApply", model=model, delta=weights, strength=s).outputs[0]))
        for s in (strength, 0.0)
    )
    bypassed = comfy.execute(
        "LoraLoaderBypassModelOnly", model=model, lora_name=path.name, strength_model=strength
    ).outputs[0]
    actual = outputs(_loaded(bypassed))
    difference, effect = (actual - expected).abs().max(), (plain - expected).abs().max()
    assert difference < 1e-3 * effect
    assert torch.equal(outputs(_loaded(model)), plain)


def _loaded(model):
    loaded_weights(model)
    return model


def test_bypass_mode_refuses_layers_it_cannot_compute(comfy, model, pack):
    key = "diffusion_model.input_blocks.1.0.in_layers.0.weight"
    entry = pack.SparseEntry(torch.tensor([3], dtype=torch.int32), torch.ones(1), (320,))
    pack.SparseDelta({key: entry}).save(comfy.base / "models" / "sara" / "norm.safetensors")
    bypassed = comfy.execute(
        "LoraLoaderBypassModelOnly", model=model, lora_name="norm.safetensors", strength_model=1.0
    ).outputs[0]
    with pytest.raises(pack.UnsupportedModelError, match="bypass mode"):
        outputs(_loaded(bypassed))


@pytest.fixture
def trainable(comfy):
    """A MODEL from a file, as Train LoRA needs it, with one latent and one caption."""
    path = comfy.base / "models" / "diffusion_models" / "toy.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        save_file(sd15_unet_state_dict(), path)
    model = comfy.execute("UNETLoader", unet_name=path.name, weight_dtype="default").outputs[0]
    generator = torch.Generator().manual_seed(0)
    latents = [{"samples": torch.randn(1, 4, 8, 8, generator=generator)}]
    return {"model": model, "latents": latents, "positive": [[[torch.randn(1, 5, 768, generator=generator), {}]]]}


@pytest.mark.parametrize("bypass", [False, True])
def test_train_lora_still_works(comfy, trainable, bypass):
    """Core walks our adapter too when it looks for an existing LoRA, with four arguments instead of five."""
    if bypass and "force_deepcopy" not in inspect.signature(trainable["model"].clone).parameters:
        pytest.skip("this ComfyUI cannot train in bypass mode on a model that a node has loaded, with or without us")
    lora, losses, steps = comfy.execute(
        "TrainLoraNode", **trainable, steps=2, rank=1, training_dtype="fp32", lora_dtype="fp32",
        gradient_checkpointing=False, bypass_mode=bypass,
    ).outputs  # fmt: skip
    assert steps == 2 and len(losses["loss"]) == 2 and len(lora) > 20
    assert any(bool(weight.abs().max() > 0) for name, weight in lora.items() if "lora_up" in name)


def test_train_lora_refuses_to_continue_from_a_delta(comfy, trainable, delta, pack):
    saved = "delta_3_steps_1.safetensors"  # a name that Train LoRA takes for one of its own
    delta.save(comfy.base / "models" / "sara" / saved)
    with pytest.raises(pack.UnsupportedModelError, match="existing_lora"):
        comfy.execute("TrainLoraNode", **trainable, steps=1, rank=1, existing_lora=saved)


def test_the_adapter_is_registered_once_and_can_be_left_out(comfy, pack, monkeypatch):
    from comfy import weight_adapter

    before = list(weight_adapter.adapters)
    assert [adapter.__name__ for adapter in before].count("SaRAAdapter") == 1
    pack.patching.register_adapter()
    assert weight_adapter.adapters == before

    without = [adapter for adapter in before if adapter.__name__ != "SaRAAdapter"]
    monkeypatch.setattr(weight_adapter, "adapters", without.copy())
    monkeypatch.setenv("SARA_STOCK_LOADERS", "0")
    pack.patching.register_adapter()
    assert weight_adapter.adapters == without
    monkeypatch.setenv("SARA_STOCK_LOADERS", "1")
    pack.patching.register_adapter()
    assert weight_adapter.adapters == [*without, pack.patching.SaRAAdapter]


def test_foreign_files_are_none_of_our_business(pack):
    lora = {"a.lora_up.weight": torch.zeros(2, 2), "a.lora_down.weight": torch.zeros(2, 2)}
    assert pack.patching.SaRAAdapter.load("a", lora, None, None) is None
    assert pack.patching.SaRAAdapter.load("a", lora, None, None, set()) is None
