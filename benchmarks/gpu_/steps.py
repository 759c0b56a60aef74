"""Time and memory of training steps of one method on a GPU, every configuration's methods one after the other.

A step is timed between CUDA events, from an idle GPU on; what the first steps take for themselves (cuDNN, compiling
kernels, finding the fastest routes) is told apart. Peaks are those of torch's allocator since the model was there. The
floor comes first and last: how far the two lie apart is how far to trust the ratios.
"""

import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch

from benchmarks.gpu_.unet import LAYOUTS, random_unet, random_unet_inputs
from benchmarks.lib.methods import METHODS, SHIRA_RANK, trained_elements
from benchmarks.lib.steps import Clock, mark, seconds, train_step, wait
from sara_core.backward import weight_gradient
from sara_core.backward.store import Store

MIB = 1 << 20
WARM_UP, STEPS, FEWEST_STEPS = 3, 10, 3
# Seconds after which a method gets no more steps than the fewest.
ENOUGH = 12.0
# 0.6 and 5.8 % of a model.
ELEMENTS = {"sd15": (5_000_000, 50_000_000), "sdxl": (15_000_000, 150_000_000), "tiny": (8_000, 80_000)}
# (name, method, which number of elements)
ORDER = (
    ("floor", "floor", 0), ("SaRA 0.6 %", "SaRA", 0), ("LoRA attention", "LoRA attention", 0),
    ("SaRA 5.8 %", "SaRA", 1), ("LoRA everywhere", "LoRA everywhere", 0), ("SHiRA", "SHiRA", 0),
    ("floor again", "floor", 0),
)  # fmt: skip
# (model, side of the latents, batch, checkpointing), the most telling first
CONFIGURATIONS = (
    ("sdxl", 128, 1, True), ("sd15", 64, 1, False), ("sd15", 64, 8, False), ("sdxl", 128, 8, True),
    ("sdxl", 128, 1, False), ("sd15", 64, 1, True), ("sd15", 128, 1, False), ("sdxl", 64, 1, True),
    ("sd15", 128, 8, True), ("sd15", 64, 8, True), ("sdxl", 64, 1, False), ("sdxl", 64, 8, True),
    ("sd15", 128, 1, True), ("sdxl", 64, 8, False), ("sd15", 128, 8, False), ("sdxl", 128, 8, False),
)  # fmt: skip
SMALL_CONFIGURATIONS = (("tiny", 16, 1, True), ("tiny", 16, 2, False))


def items(device: str, small: bool) -> dict[str, Callable[[], Iterator[dict]]]:
    """Measurements by name; each yields one result."""
    with suppress(ImportError):  # then its methods say so; here, as importing it is no part of preparing a model
        importlib.import_module("peft")
    return {
        f"{configuration_name(configuration)}: {name}": partial(
            measure, configuration, name, method, which, device, FEWEST_STEPS if small else STEPS
        )
        for configuration in (SMALL_CONFIGURATIONS if small else CONFIGURATIONS)
        for name, method, which in ORDER
    }


def configuration_name(configuration) -> str:
    model, latent, batch, checkpointing = configuration
    return f"{model} {latent}×{latent}, batch {batch}, {'with' if checkpointing else 'without'} checkpointing"


def measure(configuration, name: str, method: str, which: int, device: str, count: int) -> Iterator[dict]:
    """Seconds and MiB of `count` steps, or fewer where they take long; out of memory is a result."""
    model, latent, batch, checkpointing = configuration
    about = {
        "name": name, "configuration": configuration_name(configuration), "model": model, "latent": latent,
        "batch": batch, "checkpointing": checkpointing, "method": method, "elements": ELEMENTS[model][which],
    }  # fmt: skip
    try:
        result = _measured(configuration, method, ELEMENTS[model][which], device, count)
        yield {**about, "ok": not any(isinstance(loss, str) for loss in result["losses"]), **result}
    except torch.OutOfMemoryError as error:
        yield {**about, "ok": True, "out_of_memory": str(error).splitlines()[0]}


def _measured(configuration, method, elements, device, count) -> dict:
    start = time.perf_counter()
    name, latent, batch, checkpointing = configuration
    dtype = torch.bfloat16
    memory = _Memory(device)
    before = memory.allocated()
    model = random_unet(name, dtype, device)
    inputs = random_unet_inputs(LAYOUTS[name], latent, batch, dtype, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    loaded = memory.begin()
    weight_gradient._fastest.clear()
    with _measuring_counted(device) as measuring:
        preparing, optimizer = _timed(lambda: _prepared(method, model, elements), device)
        prepared_peak = memory.peak()
        model.train()
        model.checkpointing = checkpointing
        if optimizer is None:
            inputs[0].requires_grad_(True)
        first, losses = _timed(lambda: [_step(model, inputs, optimizer, Clock(device))], device)
    first_peak = memory.peak()
    clock = Clock(device)
    losses += [_step(model, inputs, optimizer, Clock(device)) for _ in range(WARM_UP - 1)]
    memory.begin()
    while len(clock.phases) < count:
        if len(clock.phases) >= FEWEST_STEPS and time.perf_counter() - start > ENOUGH:
            break
        losses.append(_step(model, inputs, optimizer, clock))
    steps = [sum(phases) for phases in clock.phases]
    step_peak = memory.peak()
    return {
        "trained_elements": trained_elements(optimizer),
        "parameters": parameters,
        "steps": steps,
        "step": statistics.median(steps),
        "update_share": statistics.median(update / (gradient + update) for gradient, update in clock.phases),
        "gradient_share": _gradient_share(model, inputs, optimizer, device) if method == "SaRA" else None,
        "preparing": preparing,
        "first_step": first,
        "finding_routes": measuring[0],
        "routes": _routes(),
        "kernels_given_up": sorted(weight_gradient._given_up),
        "left_by_others": before,
        "loaded": loaded,
        "peak_preparing": prepared_peak,
        "peak_first_step": first_peak,
        "peak_step": step_peak,
        "peak": max(prepared_peak, first_peak, step_peak),
        "losses": [loss if math.isfinite(loss) else str(loss) for loss in losses],  # JSON has no NaN
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _prepared(method, model, elements):
    if method != "SHiRA":
        return METHODS[method](model, elements)
    # PEFT draws SHiRA's masks on the CPU: minutes for SDXL, of which a step knows nothing.
    from peft import ShiraConfig

    from benchmarks.lib.methods import _adapter, _layers

    config = ShiraConfig(r=SHIRA_RANK, target_modules=_layers(model, torch.nn.Linear))
    config.mask_fn = _mask_on_the_device
    return _adapter(model, config)


def _mask_on_the_device(base_layer, r, **options):
    """As many random elements as PEFT's own random_mask."""
    rows, columns = base_layer.weight.shape
    mask = torch.zeros(rows * columns, dtype=torch.bool, device=base_layer.weight.device)
    mask[torch.randperm(mask.numel(), device=mask.device)[:r * (rows + columns)]] = True
    return mask.view(rows, columns)


def _forget_shira_layers() -> None:
    """PEFT 0.21 remembers every SHiRA layer that it has warned about hooks for, or has not, and with it the layer's
    weight: 4.5 GiB of SDXL for as long as the process lives."""
    layer = sys.modules.get("peft.tuners.shira.layer")
    if hasattr(layer, "_warn_once_about_module_hooks"):
        layer._warn_once_about_module_hooks.cache_clear()


def _step(model, inputs, optimizer, clock) -> float:
    return train_step(lambda: model(*inputs), optimizer, inputs[0], clock)


def _timed(work, device):
    wait(device)
    start = time.perf_counter()
    result = work()
    wait(device)
    return time.perf_counter() - start, result


@contextmanager
def _measuring_counted(device):
    """What finding the fastest routes takes: a list of one number, seconds."""
    measure, total = weight_gradient._measure, [0.0]

    def counted(*layer):
        start = time.perf_counter()
        try:
            return measure(*layer)
        finally:
            total[0] += time.perf_counter() - start

    weight_gradient._measure = counted
    try:
        yield total
    finally:
        weight_gradient._measure = measure


def _gradient_share(model, inputs, optimizer, device) -> float:
    """Of one more step: what the gradients of the chosen elements take, on the GPU's own clock."""
    take, marks, clock = Store.take, [], Clock(device)

    def marked(*arguments):
        begin = mark(device)
        take(*arguments)
        marks.append((begin, mark(device)))

    Store.take = marked
    try:
        _step(model, inputs, optimizer, clock)
    finally:
        Store.take = take
    return sum(seconds(*pair, device) for pair in marks) / sum(clock.phases[0])


def _routes() -> list[dict]:
    """What was found fastest for each kind of layer."""
    return [
        {
            "layer": "Linear" if op.spatial_dims is None else f"Conv {'×'.join(map(str, op.kernel))}",
            "shape": list(shape), "input": list(x_shape), "route": route,
        }
        for (op, shape, _, x_shape, _, _), route in weight_gradient._fastest.items()
    ]  # fmt: skip


class _Memory:
    """MiB that torch has allocated on the GPU; on the CPU, which does not count them, nothing."""

    def __init__(self, device: str):
        self._counts = device == "cuda"

    def allocated(self) -> float:
        return torch.cuda.memory_allocated() / MIB if self._counts else 0.0

    def begin(self) -> float:
        if self._counts:
            torch.cuda.reset_peak_memory_stats()
        return self.allocated()

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / MIB if self._counts else 0.0
