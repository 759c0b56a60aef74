"""The memory of a training, before it begins: what is estimated, that nothing changes by it, and what is said."""

import dataclasses
import functools
import json
import logging
import os
import subprocess
import sys
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.lib.memory import give_back_freed_memory, memory, reset_high_water_mark
from sara_core.memory.estimate import (
    MemoryEstimate, bytes_of, is_out_of_memory, out_of_memory_advice, shortage, sparse_state,
)  # fmt: skip
from sara_core.memory.simulation import simulated
from sara_core.training.loop import Training, TrainingSettings
from sara_core.training.optimizer import make_inner
from sara_core.wording import GB, MB
from tests.support.family_models import FAMILIES
from tests.support.small_models import attached, counted_memory, loss_of, small_batches, small_net
from tests.support.toy_training import denoising_loss

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 0.15
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of a process: on Linux only")

# FAMILY:BATCH:LATENT:CHECKPOINTING, large enough that activations are a good part of what is measured.
RUNS = [
    "SD1.5:2:4,32,32:on", "SD1.5:2:4,32,32:off", "SD2.1:1:4,32,32:on", "SDXL:1:4,32,32:on", "SD3:16:16,16,16:on",
    "Flux:4:16,64,64:on", "Flux:4:16,64,64:off", "Wan 2.1:4:16,5,32,32:on",
]  # fmt: skip


@pytest.fixture(scope="module")
def peaks(host):
    """Run → what was estimated and measured in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.training_peaks", *RUNS], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    measured = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {one["run"]: one for one in measured}


@LINUX
@pytest.mark.parametrize("run", RUNS)
def test_a_run_takes_the_memory_that_was_estimated(peaks, run):
    """The whole of it (weights, sparse state, activations), and what training adds to the weights, which is harder."""
    peak = peaks[run]
    added = peak["sparse_state"] + peak["activations"]
    assert added == pytest.approx(peak["growth"], rel=TOLERANCE)
    assert peak["weights"] + added == pytest.approx(peak["weights"] + peak["growth"], rel=TOLERANCE)


class Attention(nn.Module):
    """[n, tokens, 64] → the same, with what transformers are made of."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(nn.functional.gelu(mixed.transpose(1, 2).flatten(2)))


# What the peak of each consists of: activations, copies of weights, one layer's gradient.
@pytest.mark.parametrize("model, shape, options", [
    (lambda: nn.Sequential(Attention(), Attention(), Attention()), (16, 256, 64), {"route": "csr"}),
    (lambda: nn.Sequential(Attention(), Attention(), Attention()), (16, 256, 64), {"route": "dense"}),
    (lambda: nn.Linear(1024, 2048), (4, 1024), {"copy_weights": True, "route": "csr"}),
    (lambda: nn.Linear(2048, 6144), (4, 2048), {"route": "dense"}),
    (lambda: nn.Linear(64, 64), (64, 512, 64), {"route": "csr"}),
    (lambda: nn.Conv2d(128, 8, 3), (1, 128, 98, 98), {"route": "csr"}),
])  # fmt: skip
def test_simulated_memory_is_what_torch_allocates(model, shape, options):
    model, x = model(), torch.randn(shape)
    store = attached(model, density=0.02, **options)

    with simulated(model, store) as simulation:
        model(x).square().mean().backward()
    store.values.grad = torch.zeros_like(store.values)
    with counted_memory() as counted:
        model(x).square().mean().backward()
    assert simulation.peak == pytest.approx(counted.peak, rel=0.05)
    assert simulation.live == 0


@LINUX
def test_simulated_memory_includes_what_a_convolution_takes_for_itself():
    model, x = nn.Conv2d(800, 800, 3), torch.randn(1, 800, 8, 8)
    store = attached(model, route="csr", density=0.001)

    def forward_and_backward():
        model(x).square().mean().backward()

    with simulated(model, store) as simulation:
        forward_and_backward()
    forward_and_backward()  # compiles its kernels
    give_back_freed_memory()
    reset_high_water_mark()
    before = memory("VmRSS")
    forward_and_backward()
    assert simulation.peak / (1 << 20) == pytest.approx(memory("VmHWM") - before, rel=TOLERANCE)
    assert simulation.peak > model.weight.nbytes


class Frozen(OrderedDict):
    """As diffusers' models have their configuration."""

    def update(self, *args, **kwargs):
        raise RuntimeError("frozen")


class Keeping(nn.Module):
    """Keeps what it is given, as models do with position tables."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen, self.last, self.config = inner, [], None, Frozen(width=8)

    def forward(self, x):
        self.last, self.of_the_first = x * 2, x + 1
        self.seen.append(x)
        return self.inner(x) + _table(x.device).sum()


@functools.lru_cache
def _table(device):
    return torch.ones(3, device=device)


@pytest.mark.parametrize("fails", [False, True])
def test_a_simulation_leaves_no_trace(fails):
    model = Keeping(small_net())
    store = attached(model)
    attributes = [dict(vars(module)) for module in model.modules()]
    parameters = [dict(module._parameters) for module in model.modules()]
    numbers = torch.get_rng_state()
    _table.cache_clear()

    try:
        with simulated(model, store):
            loss = (model(torch.randn(4, 3, 8, 8)) + torch.rand(4)).mean()
            loss.backward()
            if fails and loss > 0:  # depends on the content, which there is none of
                loss = 0 * loss
            del loss
    except Exception:
        assert fails

    assert torch.equal(torch.get_rng_state(), numbers)
    assert [dict(vars(module)) for module in model.modules()] == attributes
    now = [dict(module._parameters) for module in model.modules()]
    assert all(a.keys() == b.keys() and all(a[n] is b[n] for n in a) for a, b in zip(now, parameters, strict=True))
    assert model.seen == [] and model.last is None and not hasattr(model, "of_the_first")
    assert model.config == {"width": 8}
    assert store.values.grad is None and not any(store.reached)
    loss_of(model, small_batches(1)[0]).backward()  # with real tensors, from the cache too
    assert store.values.grad.abs().sum() > 0


@pytest.mark.parametrize("optimizer, options", [
    (torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {}), (torch.optim.Adafactor, {}),
])  # fmt: skip
def test_the_sparse_state_is_what_a_run_keeps(optimizer, options):
    model = small_net()
    store = attached(model)
    inner = make_inner(optimizer, store.values, 1e-3, 1e-3, options)
    batch, = small_batches(1)
    run = Training(store, inner, lambda: loss_of(model, batch), TrainingSettings(steps=1))
    estimated = sparse_state(store, inner)
    run.run()

    kept = [store.values.detach(), store.values.grad, run._last_good, *store.base]
    kept += [tensor for segment in store.support for tensor in (segment.crow, segment.col)]
    kept += [value for value in inner.state[store.values].values() if torch.is_tensor(value) and value.dim()]
    assert estimated.kept == pytest.approx(bytes_of(kept, store.values.device), rel=0.02)
    moments = estimated.kept - estimated.present - store.values.nbytes
    assert estimated.present == pytest.approx(estimated.kept - moments - store.values.grad.nbytes)


@contextmanager
def prepared(comfy, name, shapes=((4, 8, 8),), batch_size=1, checkpointing=True, density=0.01):
    """A MODEL in training, and a run over random latents of these shapes."""
    host = "nodes.host.training."
    isolation, dataset = comfy.pack_module(f"{host}isolation"), comfy.pack_module(f"{host}dataset")
    pairing, training = comfy.pack_module("nodes.host.training.pairing"), comfy.pack_module("sara_core.training.loop")
    optimizer = comfy.pack_module("sara_core.training.optimizer")
    family = FAMILIES[name]
    with torch.inference_mode():
        model = family.model()
    latents = [dataclasses.replace(family, latent=shape).latents(1)[0] for shape in shapes]
    pairs = pairing.Pairs(latents, family.captions(len(latents)))
    with torch.inference_mode(False), torch.enable_grad(), isolation.training_model(
        model, {"density": density}, latents[0].shape, gradient_checkpointing=checkpointing
    ) as prepared_model:
        samples = dataset.prepare_samples(prepared_model.patcher, pairs, 0)
        loss = denoising_loss(comfy, prepared_model.patcher, samples, batch_size)
        store = prepared_model.store
        inner = optimizer.make_inner(torch.optim.AdamW, store.values, 1e-3, 1e-3, {})
        yield prepared_model, training.Training(store, inner, loss, training.TrainingSettings(steps=2))


@pytest.mark.parametrize("name, checkpointing", [("SD1.5", True), ("Flux", False)])
def test_a_run_is_the_same_with_and_without_an_estimate(comfy, name, checkpointing):
    estimate = comfy.pack_module("nodes.host.training.estimate")
    checkpoints = comfy.pack_module("nodes.host.training.checkpointing")
    results = []
    for estimated in (False, True):
        with prepared(comfy, name, [FAMILIES[name].latent], checkpointing=checkpointing) as (training, run):
            if estimated:
                assert estimate.estimate(training, run).activations > 0
                assert all(block.overwrites is None for block in checkpoints.installed(training.patcher.model))
            results.append((run.run(), training.store.values.detach().clone()))
    (losses, values), (losses_after, values_after) = results
    assert losses == losses_after and torch.equal(values, values_after)


def test_a_model_whose_code_depends_on_content_trains_without_an_estimate(comfy, caplog):
    estimate = comfy.pack_module("nodes.host.training.estimate")
    with prepared(comfy, "SD1.5") as (training, run):
        module = training.patcher.model.diffusion_model
        original = module.forward

        def forward(x, *args, **kwargs):
            return original(x if x.abs().max() > 0 else x + 1, *args, **kwargs)

        module.forward = forward
        try:
            with caplog.at_level(logging.WARNING):
                assert estimate.estimate(training, run) is None
            assert "no estimate of the memory" in caplog.text
            assert len(run.run()) == 2
        finally:
            del module.forward


def test_activations_are_those_of_the_largest_batch(comfy):
    estimate = comfy.pack_module("nodes.host.training.estimate")

    def estimated(*shapes, **options):
        with prepared(comfy, "SD1.5", shapes, **options) as (training, run):
            return estimate.estimate(training, run)

    small, large = (4, 8, 8), (4, 16, 24)
    alone = estimated(large)
    assert estimated(small, large, small) == alone
    assert estimated(small).activations < alone.activations / 2
    two = estimated(small, large, large, batch_size=2)
    assert two.activations == pytest.approx(2 * alone.activations, rel=0.2)
    assert estimated(large, checkpointing=False).activations > 1.2 * alone.activations
    assert estimated(large, density=0.02).sparse_state == pytest.approx(2 * alone.sparse_state, rel=0.05)


def test_an_estimate_in_words():
    estimate = MemoryEstimate(round(1.6 * GB), round(0.14 * GB), round(2.1 * GB), present=round(1.7 * GB))
    assert str(estimate) == "about 3.8 GB: weights 1.6, sparse state 0.14, activations 2.1"
    assert str(MemoryEstimate(61 * MB, 4 * MB, 376 * MB, 0)) == (
        "about 441 MB: weights 61, sparse state 4.0, activations 376"
    )
    assert shortage(estimate, free=3 * GB, advice="") is None
    warning = shortage(estimate, free=1 * GB, advice="Do this.")
    assert str(estimate) in warning and "1.1 GB more" in warning and warning.endswith("Do this.")


@pytest.mark.parametrize("estimate, settings, order", [
    (None, (False, 8, 2), ["gradient_checkpointing", "batch_size to 4", "pictures", "fewer weights"]),
    ((100, 900), (True, 8, 2), ["batch_size to 4 and grad_accumulation to 4", "pictures", "fewer weights"]),
    ((100, 900), (False, 3, 1), ["gradient_checkpointing", "batch_size to 1 and grad_accumulation to 3", "pictures"]),
    ((900, 100), (True, 1, 1), ["fewer weights", "pictures"]),
])  # fmt: skip
def test_the_setting_that_helps_most_is_named_first(estimate, settings, order):
    estimate = estimate and MemoryEstimate(0, *estimate, present=0)
    checkpointing, batch_size, accumulation = settings
    advice = out_of_memory_advice(
        estimate, gradient_checkpointing=checkpointing, batch_size=batch_size, grad_accumulation=accumulation
    )
    places = [advice.find(words) for words in order]
    assert -1 not in places and places == sorted(places)
    assert ("gradient_checkpointing" in advice) is not checkpointing
    assert ("batch_size" in advice) is (batch_size > 1)


def test_the_settings_are_named_as_a_host_names_them():
    advice = out_of_memory_advice(
        None, gradient_checkpointing=False, batch_size=4, grad_accumulation=1, setting="--{}".format
    )
    assert "set --batch_size to 2 and --grad_accumulation to 2" in advice
    assert "switch --gradient_checkpointing on" in advice


def test_running_out_of_memory_is_recognised(comfy):
    host_too = comfy.pack_module("nodes.host.training.estimate").is_out_of_memory
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60, dtype=torch.uint8)
    said = ["CUDA error: out of memory", "MPS backend out of memory", "DefaultCPUAllocator: not enough memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc"]
    for error in (real.value, torch.OutOfMemoryError("x"), MemoryError(), *map(RuntimeError, said)):
        assert is_out_of_memory(error) and host_too(error)
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(error) and not host_too(error)


def test_the_warning_compares_with_what_the_host_says_is_free(comfy, monkeypatch):
    from comfy import model_management

    estimate = comfy.pack_module("nodes.host.training.estimate")
    needed = MemoryEstimate(8 * GB, GB, GB, present=8 * GB)
    training = SimpleNamespace(device=torch.device("cpu"), patcher=None)
    monkeypatch.setattr(model_management, "get_free_memory", lambda device: 3 * GB)
    assert estimate.shortage(training, needed, "") is None
    monkeypatch.setattr(model_management, "get_free_memory", lambda device: GB)
    assert "1.0 GB more" in estimate.shortage(training, needed, "")
    # What models under dynamic VRAM have on the device is free for others, and only a patcher counts it.
    training.patcher = SimpleNamespace(get_free_memory=lambda device: 3 * GB)
    assert estimate.shortage(training, needed, "") is None
