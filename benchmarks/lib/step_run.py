"""Training steps of one method in plain PyTorch, measured in a process of its own.

    python -m benchmarks.lib.step_run SPECIFICATION_AS_JSON RESULT_FILE

The specification: model (of models.SHAPES), method (of methods.METHODS), elements, checkpointing, latent, batch,
steps, device and dtype. The peak of memory is that since the model was there: preparing the method counts.
"""

import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import accelerate
import diffusers
import peft
import torch

from benchmarks.lib.memory import OthersWatch, give_back_freed_memory, memory, reset_high_water_mark
from benchmarks.lib.methods import METHODS, trained_elements
from benchmarks.lib.models import random_inputs, random_model
from benchmarks.lib.steps import Clock, train_step
from sara_core.backward.store import Store

MIB = 1 << 20


def measure(spec: dict) -> dict:
    """Memory in MiB and times in seconds; see the keys of the result."""
    device = spec["device"]
    peaks = (_CudaMemory if device == "cuda" else _ProcessMemory)()
    trainee = Trainee(spec)
    parameters = sum(parameter.numel() for parameter in trainee.model.parameters())
    loaded = peaks.begin()
    others, start = OthersWatch(), time.perf_counter()
    trainee.prepare()
    prepared = time.perf_counter() - start
    prepared_peak = peaks.peak()
    clock, gradients = trainee.clock, WeightGradients()
    losses = [trainee.step() for _ in range(spec["steps"])]
    peak = peaks.peak()
    return {
        **spec,
        "trained_elements": trained_elements(trainee.optimizer),
        "parameters": parameters,
        "loaded": loaded,
        "peak": peak,
        "growth": peak - loaded,
        "preparing": prepared,
        "preparing_growth": prepared_peak - loaded,
        "first_step": sum(clock.phases[0]),
        "steps": [sum(phases) for phases in clock.phases[1:]],
        "weight_gradient_share": gradients.seconds / sum(map(sum, clock.phases)) if device == "cpu" else None,
        "update_share": statistics.median(update / (gradient + update) for gradient, update in clock.phases[1:]),
        "losses": losses,
        "cores_used_by_others": others.cores(),
        "versions": {
            "torch": torch.__version__, "diffusers": diffusers.__version__, "peft": peft.__version__,
            "accelerate": accelerate.__version__, "Python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "accelerator": torch.cuda.get_device_name() if device == "cuda" else None,
    }  # fmt: skip


class Trainee:
    """A model with random weights, and a method that trains it after `prepare`; see the specification above."""

    def __init__(self, spec: dict):
        dtype, device = getattr(torch, spec["dtype"]), spec["device"]
        self.spec, self.optimizer, self.clock = spec, None, Clock(device)
        self.model = random_model(spec["model"], dtype, device)
        self.inputs = random_inputs(spec["model"], spec["latent"], spec["batch"], dtype, device)

    def prepare(self) -> None:
        """Let the method choose what it trains."""
        self.optimizer = METHODS[self.spec["method"]](self.model, self.spec["elements"])
        self.model.train()  # diffusers checkpoints, and PEFT adapts, in training mode only
        if self.spec["checkpointing"]:
            self.model.enable_gradient_checkpointing()
        if self.optimizer is None:
            first = next(iter(self.inputs))
            self.inputs[first] = self.inputs[first].requires_grad_(True)

    def step(self) -> float:
        """The loss of one step, whose times are the clock's last. Raises RuntimeError where it is no number."""
        given = next(iter(self.inputs.values()))
        loss = train_step(lambda: self.model(**self.inputs).sample, self.optimizer, given, self.clock)
        if not math.isfinite(loss):
            raise RuntimeError(f"{self.spec['method']} did not train: its loss is {loss}")
        return loss


class WeightGradients:
    """seconds: what our layers take for the gradients of their chosen elements; on a GPU, which works on its own, they
    tell nothing"""

    def __init__(self):
        self.seconds = 0.0
        take = Store.take

        def timed(*arguments):
            start = time.perf_counter()
            take(*arguments)
            self.seconds += time.perf_counter() - start

        Store.take = timed


class _ProcessMemory:
    """The resident memory of this process."""

    def begin(self) -> float:
        give_back_freed_memory()
        reset_high_water_mark()
        return memory("VmRSS")

    def peak(self) -> float:
        return memory("VmHWM")


class _CudaMemory:
    """The memory that torch has allocated on the GPU."""

    def begin(self) -> float:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / MIB


if __name__ == "__main__":
    specification, result_file = sys.argv[1:]
    Path(result_file).write_text(json.dumps(measure(json.loads(specification))), encoding="utf-8")
