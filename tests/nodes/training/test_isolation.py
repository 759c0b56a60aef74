"""Training leaves no trace on the MODEL, however its weights are reached; and reaches them correctly in each way."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support import toy_models

GENERATOR = torch.Generator().manual_seed(2)
LATENTS = [{"samples": torch.randn(2, 4, 8, 8, generator=GENERATOR)}]
CAPTION = [[[torch.randn(1, 77, 768, generator=GENERATOR), {}]]]


@pytest.fixture
def model(comfy):
    with torch.inference_mode():
        return toy_models.sd15_model()


def train(comfy, model, **settings):
    settings = {"steps": 2, "learning_rate": 1e-3, "batch_size": 2, **settings}
    return comfy.execute("SaRATrain", model=model, latents=LATENTS, positive=CAPTION, **settings).outputs[0]


def sample(comfy, model):
    return comfy.execute(
        "KSampler", model=model, positive=CAPTION[0], negative=CAPTION[0], latent_image=LATENTS[0],
        seed=1, steps=2, cfg=1.0,
    ).outputs[0]["samples"]


def with_lora(model):
    """The MODEL with a LoRA-like patch on two weights, one of them convolutional."""
    keys = ["input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", "input_blocks.1.0.in_layers.2.weight"]
    weights = model.model_state_dict()
    patches = {
        f"diffusion_model.{key}": (0.1 * torch.randn(weights[f"diffusion_model.{key}"].shape, generator=GENERATOR),)
        for key in keys
    }
    patched = model.clone()
    assert set(patched.add_patches(patches)) == set(patches)
    return patched


def assert_deltas_agree(first, second):
    """Same elements; values equal but for gradients so small that Adam's first steps follow their rounding."""
    assert first.entries.keys() == second.entries.keys()
    for name, entry in first.entries.items():
        assert torch.equal(entry.indices, second.entries[name].indices)
        close = torch.isclose(entry.values, second.entries[name].values, rtol=1e-3, atol=1e-6)
        assert close.float().mean() > 0.99, name


def load_in_low_vram(monkeypatch):
    """The host keeps loading models the way it does when they do not fit: cast and patched at each use."""
    import comfy.model_management as management

    def load(models, **_):
        for model in models:
            model.unpatch_model(model.load_device)
            model.patch_model(model.load_device, lowvram_model_memory=1)

    monkeypatch.setattr(management, "load_models_gpu", load)


def test_same_picture_after_training_and_after_eviction(comfy, model):
    import comfy.model_management as management

    before = sample(comfy, model)
    train(comfy, model)
    assert torch.equal(sample(comfy, model), before)
    management.unload_all_models()
    assert torch.equal(sample(comfy, model), before)
    train(comfy, model)
    assert torch.equal(sample(comfy, model), before)


def test_adding_to_copies_equals_writing_in_place(comfy, model, monkeypatch):
    in_place = train(comfy, model)
    isolation = comfy.pack_module("nodes.host.training.isolation")
    monkeypatch.setattr(isolation, "can_be_written", lambda layer, device: False)
    assert_deltas_agree(in_place, train(comfy, model))


def test_low_vram_trains_the_same_and_leaves_no_trace(comfy, model, monkeypatch):
    fully_loaded = train(comfy, model)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    load_in_low_vram(monkeypatch)
    in_low_vram = train(comfy, model)
    assert any(getattr(part, "comfy_cast_weights", False) for part in model.model.modules())
    assert_deltas_agree(fully_loaded, in_low_vram)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.state_dict().items())


@pytest.mark.parametrize("low_vram", [False, True])
def test_training_through_a_lora_on_the_model(comfy, model, monkeypatch, low_vram):
    """The patch is live while training, decides nothing about the selection, and stays as it was."""
    if low_vram:
        load_in_low_vram(monkeypatch)
    patched = with_lora(model)
    plain, through_patch = train(comfy, model), train(comfy, patched)
    for name, entry in plain.entries.items():
        assert torch.equal(entry.indices, through_patch.entries[name].indices)
    assert any(not torch.allclose(e.values, through_patch.entries[n].values) for n, e in plain.entries.items())
    monkeypatch.undo()
    with_patch = sample(comfy, patched)
    without = sample(comfy, model)
    train(comfy, patched)
    assert torch.equal(sample(comfy, patched), with_patch)
    assert torch.equal(sample(comfy, model), without)
    assert not torch.equal(with_patch, without)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_train_and_apply_what_was_trained(comfy, dtype):
    with torch.inference_mode():
        model = toy_models.sd15_model(dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    delta = train(comfy, model)
    now = model.model.state_dict()
    assert all(torch.equal(before[name], tensor) and tensor.dtype == before[name].dtype for name, tensor in now.items())
    # Steps smaller than the weights' own resolution are kept in the fp32 vector.
    assert all(entry.values.dtype == torch.float32 for entry in delta.entries.values())
    assert sum(int((entry.values != 0).sum()) for entry in delta.entries.values()) > 0.9 * delta.nnz


def test_small_tensors_are_copied_to_the_device_that_computes(comfy):
    """A host that streams hands them out in a buffer that it fills again before the backward."""
    isolation, parts = (comfy.pack_module(f"nodes.host.training.{name}") for name in ("isolation", "parts"))
    with torch.inference_mode():
        norm = torch.nn.LayerNorm(4)
    kept, elsewhere = norm.weight, SimpleNamespace(load_device=torch.device("meta"))
    with ExitStack() as undo:
        isolation._replace_inference_tensors(undo, [parts.Part("diffusion_model", elsewhere, norm)])
        assert norm.weight.device == norm.bias.device == elsewhere.load_device
        assert not norm.weight.is_inference()
    assert norm.weight is kept


def run_read_only(tmp_path, action):
    script = Path(__file__).resolve().parents[2] / "support" / "read_only_weights.py"
    return subprocess.run([sys.executable, str(script), str(tmp_path), action], capture_output=True, text=True)


def test_read_only_mapped_weights_are_trained_on_copies(tmp_path):
    result = run_read_only(tmp_path, "train")
    assert result.returncode == 0 and result.stdout.endswith("trained\n"), result.stderr[-2000:]


def test_writing_read_only_mapped_weights_would_end_the_process(tmp_path):
    assert run_read_only(tmp_path, "write").returncode not in (0, 1)
