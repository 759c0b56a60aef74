"""What putting a delta on a model takes and leaves: counted bytes, file reads and modules, in the real host."""

import copy
import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sara_core.tensors.elements import add_sparse_
from tests.support.toy_models import assert_same_bits, delta_entries, loaded_weights, sd15_unet_state_dict, unload

ELEMENTS = 3_500_000
CHUNK = 2**20


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make: alive, peak (the most that were alive at once), and of the
    largest."""

    def __init__(self):
        super().__init__()
        self._seen: set[int] = set()
        self.alive = self.peak = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for value in args:
            if isinstance(value, torch.Tensor):
                self._seen.add(value.untyped_storage()._cdata)
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, torch.Tensor):
                self._count(made.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._seen:
            return
        self._seen.add(identity)
        self.alive += size
        self.peak, self.largest = max(self.peak, self.alive), max(self.largest, size)
        weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self.alive -= size


def random_entry(shape: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.randperm(torch.Size(shape).numel())[:count].sort().values.to(torch.int32)
    return positions, torch.randn(count) * 1e-3


# Bytes for each element of a chunk. float32 takes the product only.
@pytest.mark.parametrize(
    ("dtype", "layout", "most"),
    [
        (torch.float32, torch.contiguous_format, 4),
        (torch.float32, torch.channels_last, 40),
        (torch.bfloat16, torch.contiguous_format, 40),
        (torch.float16, torch.channels_last, 40),
    ],
)
def test_memory_for_adding_does_not_grow_with_the_delta(dtype, layout, most):
    shape = (1024, 512, 3, 3)
    weight = torch.randn(shape).to(dtype).to(memory_format=layout)
    positions, changes = random_entry(shape, ELEMENTS)
    expected = weight.flatten()
    expected[positions.long()] = (expected[positions.long()].float() + changes * 0.7).to(dtype)
    with AliveBytes() as counted:
        add_sparse_(weight, positions, changes, 0.7)
    assert 0 < counted.peak <= most * CHUNK
    assert torch.equal(weight.flatten(), expected)


@pytest.fixture
def unet_name(comfy, tmp_path):
    """Name of a UNet's file in the host's menu."""
    path = tmp_path / "unet.safetensors"
    safetensors.torch.save_file(sd15_unet_state_dict(), path)
    comfy.folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    return path.name


@pytest.fixture
def model(comfy, unet_name):
    yield comfy.execute("UNETLoader", unet_name=unet_name).outputs[0]
    unload()


@pytest.fixture
def deltas(comfy, model):
    """Names of two delta files for the model's Linear and convolution weights."""
    pack = comfy.pack_module("sara_core.delta")
    layers = {name: weight for name, weight in model.model.state_dict().items() if weight.dim() > 1}
    names = []
    for seed in (0, 1):
        entries = delta_entries({name: w for name, w in layers.items() if "diffusion_model" in name}, 0.05, seed)
        delta = pack.SparseDelta({name: pack.SparseEntry(*entry) for name, entry in entries.items()})
        names.append(f"switched-{seed}.safetensors")
        delta.save(comfy.base / "models" / "sara" / names[-1])
    return names


def test_a_loaded_model_with_a_delta_takes_six_bytes_an_element_and_nothing_of_a_weights_size(comfy, model, deltas):
    load(model)
    patched, delta, *_ = comfy.execute("SaRALoader", model=model, sara_name=deltas[0], strength=0.7).outputs
    largest = max(len(entry.indices) for entry in delta.entries.values())
    with torch.inference_mode(), AliveBytes() as counted:
        load(patched)
        assert 0 < counted.alive <= 6 * delta.nnz
        assert counted.peak <= counted.alive + 32 * largest
        kept = counted.alive
        for strength in (1.0, -0.5):
            load(comfy.execute("SaRAApply", model=model, delta=delta, strength=strength).outputs[0])
            assert counted.alive <= kept
        assert counted.largest <= 8 * largest < 4 * max(weight.numel() for weight in model.model.parameters())


def test_a_patch_that_is_added_while_the_model_computes_makes_nothing_of_the_weights_size(comfy, model, deltas):
    """As with dynamic VRAM and low VRAM, where the host makes a copy of the weight for each use."""
    from comfy.model_patcher import LowVramPatch

    patched = comfy.execute("SaRALoader", model=model, sara_name=deltas[0], strength=0.7).outputs[0]
    for key in patched.patches:
        weight = patched.model.get_parameter(key).detach().clone()
        with torch.inference_mode(), AliveBytes() as counted:
            made = LowVramPatch(key, patched.patches)(weight)
        assert made.data_ptr() == weight.data_ptr()
        assert counted.peak < 0.5 * weight.nbytes


@torch.inference_mode()  # as the host runs a graph: outside of it, it restores copies of the weights
def test_switching_strength_or_delta_reads_no_model_and_gives_the_bits_of_a_fresh_load(
    comfy, model, unet_name, deltas, files_read
):
    places = weight_places(model)
    for name, strength in ((deltas[0], 0.8), (deltas[0], 1.0), (deltas[1], 1.0), (deltas[0], -0.3)):
        files_read.clear()
        switched = comfy.execute("SaRALoader", model=model, sara_name=name, strength=strength).outputs[0]
        weights = loaded_weights(switched)
        assert switched.model is model.model
        assert unet_name not in files_read
        fresh = comfy.execute("UNETLoader", unet_name=unet_name).outputs[0]
        assert unet_name in files_read  # this is how a reload would show
        fresh = comfy.execute("SaRALoader", model=fresh, sara_name=name, strength=strength).outputs[0]
        assert_same_bits(weights, loaded_weights(fresh))
        unload()
        assert weight_places(model) == places


def test_a_patched_model_differs_from_the_plain_one_in_its_weight_patches_only(comfy, model, deltas):
    load(model)
    plain, modules = patcher_state(model), module_state(model)
    patched = comfy.execute("SaRALoader", model=model, sara_name=deltas[0], strength=1.0).outputs[0]
    load(patched)
    assert patched.patches.keys() == patched.backup.keys() and not model.patches
    assert patcher_state(patched) == plain
    assert module_state(patched) == modules


def load(model) -> None:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)


@pytest.fixture
def files_read(monkeypatch):
    """Names of the files that the host opens as models."""
    import comfy.utils

    names, original = [], comfy.utils.load_torch_file

    def recording(path, *args, **kwargs):
        names.append(Path(path).name)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(comfy.utils, "load_torch_file", recording)
    return names


def weight_places(model) -> dict[str, int]:
    return {name: weight.data_ptr() for name, weight in model.model.named_parameters()}


def patcher_state(model) -> dict:
    """Every way beside weight patches by which a MODEL can change what its network does."""
    ways = (
        "object_patches", "weight_wrapper_patches", "model_options", "attachments", "additional_models", "callbacks",
        "wrappers", "injections", "hook_patches", "forced_hooks", "force_cast_weights",
    )  # fmt: skip
    return {way: copy.copy(getattr(model, way)) for way in ways}


def module_state(model) -> dict:
    """Class, attributes and hooks of every module, and the functions through which the host casts its weights."""
    return {
        name: (
            type(module), sorted(module.__dict__), dict(module._forward_hooks), dict(module._forward_pre_hooks),
            list(getattr(module, "weight_function", [])), list(getattr(module, "bias_function", [])),
        )
        for name, module in model.model.named_modules()
    }  # fmt: skip
