"""The pack's classes in the host, toy models of each dtype, and a delta for them."""

import types

import pytest
import torch

from tests.support.toy_models import delta_entries, sd15_model, unload


@pytest.fixture
def pack(comfy):
    """The pack's own classes, which the host has loaded under another name than `import sara_core` gives."""
    delta, errors = comfy.pack_module("sara_core.delta"), comfy.pack_module("sara_core.errors")
    return types.SimpleNamespace(
        SparseDelta=delta.SparseDelta,
        SparseEntry=delta.SparseEntry,
        DeltaError=errors.DeltaError,
        UnsupportedModelError=errors.UnsupportedModelError,
        patching=comfy.pack_module("nodes.host.patching"),
        file_v1=comfy.pack_module("sara_core.delta.file_v1"),
    )


@pytest.fixture(scope="module")
def models(comfy):
    """One MODEL per dtype, with its weights as they were loaded."""
    made = {}

    def model(dtype=torch.float32):
        if dtype not in made:
            patcher = sd15_model(dtype=dtype)
            made[dtype] = patcher, {name: weight.clone() for name, weight in patcher.model.state_dict().items()}
        return made[dtype]

    yield model
    unload()


@pytest.fixture
def model(models):
    yield models()[0]
    unload()


def trained(weights):
    """What is trained by default, every Linear and Conv weight, and a bias that was included by pattern."""
    chosen = {name: weight for name, weight in weights.items() if weight.dim() > 1 and "diffusion_model" in name}
    return {**chosen, "diffusion_model.out.2.bias": weights["diffusion_model.out.2.bias"]}


@pytest.fixture
def delta(pack, models):
    entries = delta_entries(trained(models()[1]))
    entries = {name: pack.SparseEntry(*entry) for name, entry in entries.items()}
    return pack.SparseDelta(entries, {"sara.family": "SD1.5"})


@pytest.fixture
def saved(comfy, delta):
    """Name of the delta's file in models/sara."""
    delta.save(comfy.base / "models" / "sara" / "good.safetensors")
    return "good.safetensors"
