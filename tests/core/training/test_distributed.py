"""Two processes under DistributedDataParallel, with half a batch each, train what one trains with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sara_core import SaRA
from tests.support.small_models import (
    every_bit, loss_of, relative_error, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[3]
STEPS, MICRO_BATCHES = 4, 3
OPTIONS = dict(density=0.3, lr=1e-2, weight_gradient="dense", preset="all layers, biases and norms")
# name → accumulation over micro-batches, extra arguments of DistributedDataParallel
CASES = {
    "plain": (False, {}),
    "gradients in the reducer's memory": (False, {"gradient_as_bucket_view": True}),
    "accumulation with no_sync": (True, {}),
    "accumulation with no_sync in the reducer's memory": (True, {"gradient_as_bucket_view": True}),
}

WORKER = """
import contextlib, sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sara_core import SaRA
from tests.support.small_models import every_bit, loss_of, small_net
from tests.core.training.test_distributed import CASES, MICRO_BATCHES, OPTIONS, batches

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
)
results = {}
for name, (accumulate, options) in CASES.items():
    model = small_net()
    optimizer = SaRA(model, **OPTIONS)
    parallel = DistributedDataParallel(model, **options)
    for number, (x, y) in enumerate(batches()):
        half = x.chunk(2)[rank], y.chunk(2)[rank]
        last = not accumulate or number % MICRO_BATCHES == MICRO_BATCHES - 1
        with contextlib.nullcontext() if last else parallel.no_sync():
            (loss_of(parallel, half) / (MICRO_BATCHES if accumulate else 1)).backward()
        if last:
            nn.utils.clip_grad_norm_(parallel.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
    results[name] = {
        "values": optimizer.values.detach(),
        "weights": every_bit(model),
        "keys": list(parallel.state_dict()),
    }
torch.save(results, f"{folder}/result-{rank}.pt")
dist.destroy_process_group()
"""


def batches():
    return small_batches(STEPS * MICRO_BATCHES, size=8)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes ended with, by name of the case."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), folder.as_posix()], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        output = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(output)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(2)]


def one_process(accumulate):
    """The same training with whole batches and an optimizer alone."""
    with repeatable():
        model = small_net()
        optimizer = SaRA(model, **OPTIONS)
        for number, batch in enumerate(batches()):
            (loss_of(model, batch) / (MICRO_BATCHES if accumulate else 1)).backward()
            if not accumulate or number % MICRO_BATCHES == MICRO_BATCHES - 1:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                optimizer.zero_grad()
    return model, optimizer


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_double_batch(two_processes, case):
    first, second = (results[case] for results in two_processes)
    assert torch.equal(first["values"], second["values"])
    assert same_bits(first["weights"], second["weights"])
    model, optimizer = one_process(CASES[case][0])
    assert optimizer.values.detach().abs().max() > 0.01
    assert relative_error(first["values"], optimizer.values.detach()) <= 1e-4
    for name, expected in every_bit(model).items():
        assert torch.allclose(first["weights"][name], expected, rtol=1e-5, atol=1e-6), name
    assert first["keys"] == [f"module.{key}" for key in small_net().state_dict()]
