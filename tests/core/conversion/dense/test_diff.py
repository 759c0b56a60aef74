"""Dense differences and LoRAs out, loaded by an unmodified ComfyUI, and those that ComfyUI itself writes in."""

import math
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.conversion.dense import svd_lora
from sara_core.conversion.dense.lora_parts import parts_of
from sara_core.conversion.dense.programs import COMFYUI, PROGRAMS
from sara_core.conversion.read import read_delta
from sara_core.conversion.write import write_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError
from tests.support.family_models import FAMILIES

COMFYUI_LAYOUT = PROGRAMS[COMFYUI].layout(None)
# A ComfyUI without any custom node loads a model and a LoRA file, and saves what the weights then are.
LOAD_LORA = """
import sys
sys.path.insert(0, {folder!r})
from comfy.cli_args import args
args.cpu = True
import comfy.lora, comfy.sd, comfy.utils
from safetensors.torch import save_file
for weights, lora, result in {jobs!r}:
    state = comfy.utils.load_torch_file(weights)
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options={{"dtype": state[next(iter(state))].dtype}})
    patched, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(lora, safe_load=True), 1.0, 0)
    patched.patch_model()
    save_file({{name: tensor.contiguous() for name, tensor in patched.model_state_dict().items()}}, result)
"""


def delta_on(weights, share=0.01, seed=0):
    """Changes in every kind of parameter there is. SD3's pos_embed is none: the host has no way to change buffers."""
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for name, weight in weights.items():
        if name == "pos_embed":
            continue
        chosen = torch.randperm(weight.numel(), generator=generator)[: math.ceil(share * weight.numel())].sort().values
        values = torch.randn(len(chosen), generator=generator) * 0.1
        entries[f"diffusion_model.{name}"] = SparseEntry(chosen.to(torch.int32), values, tuple(weight.shape))
    return SparseDelta(entries, {"sara.family": "SD1.5"})


def in_unmodified_host(host, tmp_path, jobs):
    """Weights after loading: [(weights, LoRA file)] → [weights]."""
    files = []
    for number, (weights, lora) in enumerate(jobs):
        files.append((str(tmp_path / f"in{number}.safetensors"), str(lora), str(tmp_path / f"out{number}.safetensors")))
        save_file(weights, files[-1][0])
    script = LOAD_LORA.format(folder=str(host.folder), jobs=files)
    done = subprocess.run([host.python, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora key not loaded" not in done.stderr and "ERROR" not in done.stderr, done.stderr[-3000:]
    return [load_file(result) for _, _, result in files]


def test_an_unmodified_comfyui_loads_what_is_written(host, comfy, tmp_path):
    """Every kind of parameter of SD1.5, SD3 and Flux, in fp32 and fp16, to the last bit; a LoRA as near as reported."""
    jobs, expected = [], []
    for name, dtype in (("SD1.5", torch.float32), ("SD1.5", torch.float16), ("SD3", torch.float32),
                        ("Flux", torch.float32)):  # fmt: skip
        weights = FAMILIES[name].state_dict(dtype=dtype)
        delta = delta_on(weights)
        jobs.append((weights, tmp_path / f"{len(jobs)}.safetensors"))
        write_delta(delta, jobs[-1][1], "diff")
        changed = {key: tensor.clone() for key, tensor in weights.items()}
        delta.apply_(changed)
        expected.append(changed)
    jobs.append((jobs[0][0], tmp_path / "lora.safetensors"))
    delta = delta_on(jobs[0][0])
    errors = svd_lora.write(jobs[-1][1], parts_of(delta.entries, COMFYUI_LAYOUT), 8, {})
    results = in_unmodified_host(host, tmp_path, jobs)
    for changed, result in zip(expected, results):
        different = [key for key in changed if not torch.equal(changed[key], result[f"diffusion_model.{key}"])]
        assert not different, different
    check_lora(jobs[-1][0], expected[0], results[-1], errors)


def check_lora(before, with_delta, with_lora, errors):
    squares = missed = 0.0
    for key, weight in before.items():
        name = f"diffusion_model.{key}"
        change, approximated = (with_delta[key] - weight).double(), (with_lora[name] - weight).double()
        miss = float((change - approximated).norm())
        squares, missed = squares + float(change.norm()) ** 2, missed + miss**2
        if name in errors.layers:
            assert miss / float(change.norm()) == pytest.approx(errors.layers[name], abs=1e-4)
        else:
            assert torch.equal(with_delta[key], with_lora[name]), name
    assert math.sqrt(missed / squares) == pytest.approx(errors.overall, abs=1e-4)
    assert len(errors.layers) == sum(weight.dim() > 1 and key.endswith(".weight") for key, weight in before.items())


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (24, 10, 3, 3), (4, 30, 3, 3)])
@pytest.mark.parametrize("rank", [1, 7])
def test_the_error_of_a_layer_is_the_smallest_that_its_rank_allows(tmp_path, shape, rank):
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(0, change.numel(), 3, dtype=torch.int32)
    entry = SparseEntry(positions, change.view(-1)[positions.long()], shape)
    errors = svd_lora.write(
        tmp_path / "x.safetensors", parts_of({"diffusion_model.a.weight": entry}, COMFYUI_LAYOUT), rank, {}
    )
    sparse = torch.zeros(change.numel())
    sparse[positions.long()] = entry.values
    values = torch.linalg.svdvals(sparse.view(shape).flatten(1).double())
    best = float((values[rank:].square().sum() / values.square().sum()).sqrt())
    assert errors.layers["diffusion_model.a.weight"] == pytest.approx(best, rel=1e-3, abs=1e-3)
    assert errors.overall == pytest.approx(errors.layers["diffusion_model.a.weight"])


def test_progress_counts_the_layers_that_are_done(tmp_path):
    one = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([1.0]), (4, 5))
    parts, seen = parts_of({f"diffusion_model.{name}.weight": one for name in "abc"}, COMFYUI_LAYOUT), []
    svd_lora.write(tmp_path / "x.safetensors", parts, 1, {}, on_progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_rank_as_large_as_the_layers_loses_only_the_rounding(tmp_path):
    entry = SparseEntry(torch.tensor([3, 77, 300], dtype=torch.int32), torch.tensor([1e-3, -2e-5, 0.5]), (30, 20))
    report = write_delta(SparseDelta({"diffusion_model.a.weight": entry}), tmp_path / "x.safetensors", "lora", rank=20)
    tensors = load_file(tmp_path / "x.safetensors")
    assert tensors["lora_unet_a.lora_down.weight"].shape == (3, 20) and float(tensors["lora_unet_a.alpha"]) == 3
    assert "diffusion_model.a.weight" in report and "relative error of the LoRA of rank 20" in report
    product = tensors["lora_unet_a.lora_up.weight"].float() @ tensors["lora_unet_a.lora_down.weight"].float()
    assert float((product.view(-1)[entry.indices.long()] - entry.values).norm() / entry.values.norm()) < 1e-3


def test_there_and_back_through_differences_is_the_identity(comfy, tmp_path):
    for name in ("SD1.5", "SD3"):
        weights = FAMILIES[name].state_dict()
        base = tmp_path / "base.safetensors"
        save_file({f"model.diffusion_model.{key}": tensor for key, tensor in weights.items()}, base)
        delta = delta_on(weights)
        write_delta(delta, tmp_path / "x.safetensors", "diff")
        back = read_delta(tmp_path / "x.safetensors", base).delta
        assert back.entries.keys() == delta.entries.keys()
        for key, entry in delta.entries.items():
            assert torch.equal(back.entries[key].indices, entry.indices)
            assert torch.equal(back.entries[key].values, entry.values)


@pytest.mark.parametrize("lora_type", ["full_diff", "standard"])
def test_what_comfyuis_own_node_extracts_is_read(comfy, tmp_path, lora_type):
    """Extract and Save Lora, of two models that differ a little: fp16 differences of weights, biases and norms."""
    weights = FAMILIES["SD1.5"].state_dict()
    base = tmp_path / "base.safetensors"
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in weights.items()}, base)
    delta = delta_on(weights, share=1e-4 if lora_type == "full_diff" else 0.3)
    loaded = FAMILIES["SD1.5"].model()
    patched = comfy.pack_module("nodes.host.patching").patch_model(loaded, hosts_delta(comfy, delta), 1.0)
    difference = comfy.execute("ModelMergeSubtract", model1=patched, model2=loaded, multiplier=1.0).outputs[0]
    comfy.execute("LoraSave", filename_prefix=f"loras/{lora_type}", rank=4, lora_type=lora_type, bias_diff=True,
                  model_diff=difference)  # fmt: skip
    file = comfy.base / "output" / "loras" / f"{lora_type}_00001_.safetensors"
    written = load_file(file)
    conversion = read_delta(file, base, density=None if lora_type == "full_diff" else 1.0)
    changes = {name: torch.zeros(entry.shape) for name, entry in conversion.delta.entries.items()}
    conversion.delta.apply_(changes)
    if lora_type == "full_diff":
        for name, change in changes.items():
            stem, _, parameter = name.rpartition(".")
            assert torch.equal(change, written[f"{stem}.{'diff' if parameter == 'weight' else 'diff_b'}"].float())
    else:
        up, down = (written[f"diffusion_model.time_embed.0.lora_{way}.weight"].float() for way in ("up", "down"))
        torch.testing.assert_close(changes["diffusion_model.time_embed.0.weight"], up @ down)
    nonzero = sum(int(torch.count_nonzero(t)) for t in written.values()) if lora_type == "full_diff" else None
    assert nonzero in (None, conversion.delta.nnz)


def hosts_delta(comfy, delta):
    """The same delta as the pack's own class has it."""
    module = comfy.pack_module("sara_core.delta")
    return module.SparseDelta({name: module.SparseEntry(*entry) for name, entry in delta.entries.items()})


@pytest.mark.parametrize("to", ["diff", "lora"])
def test_a_target_of_another_ending_is_refused(tmp_path, to):
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (3, 4))
    with pytest.raises(DeltaError, match="safetensors"):
        write_delta(SparseDelta({"a.weight": entry}), tmp_path / "x.pt", to)


def test_a_disk_that_refuses_leaves_nothing(tmp_path):
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (3, 4))
    for to in ("diff", "lora"):
        with pytest.raises(DeltaError, match="folder does not exist"):
            write_delta(SparseDelta({"a.weight": entry}), tmp_path / "none" / "x.safetensors", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_below_one_is_refused(tmp_path, rank):
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (3, 4))
    with pytest.raises(DeltaError, match="whole number not below 1"):
        write_delta(SparseDelta({"a.weight": entry}), tmp_path / "x.safetensors", "lora", rank=rank)


def test_an_empty_delta_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(DeltaError, match="nothing to write"):
        write_delta(SparseDelta({}), tmp_path / "x.safetensors", "diff")
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (3, 4))
    with pytest.raises(DeltaError, match="no format 'pt'"):
        write_delta(SparseDelta({"a.weight": entry}), tmp_path / "x.pt", "pt")
