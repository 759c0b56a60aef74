"""AdamW 8-bit with the real torchao and bitsandbytes: bytes that the moments take, what a step needs, runs resumed.

    python dev.py bench eight_bit [--json FILE]

Those of the two that the interpreter has; `pip install torchao==0.18.0 bitsandbytes==0.50.2` there gives both. The
tests have a stand-in, because torchao compiles its step. Exits with 1 if a resumed run differs in a bit, or an estimate
of the kept memory is wrong by more than 2 % and a few KiB.
"""

import argparse
import importlib
import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from sara_core import SaRA
from sara_core.memory.estimate import sparse_state
from sara_core.training import snapshot

PACKAGES = ("torchao", "bitsandbytes")
# Above and at a multiple of the block's length, and few enough to be kept in fp32.
COUNTS = (1000, 6912, 7001)
LARGE = (1 << 24) + 3
SIDE, STEPS = 96, 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench eight_bit", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    results = []
    for package in PACKAGES:
        try:
            kind = importlib.import_module(f"{package}.optim").AdamW8bit
        except ImportError:
            print(f"{package} is not installed.")
            continue
        for count in COUNTS:
            results.append({"package": f"{package} {version(package)}", "elements": count, **resumed(kind, count)})
            print(results[-1])
        results.append({"package": f"{package} {version(package)}", "elements": LARGE, **peak(kind)})
        print(results[-1])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2))
    return 0 if all(result.get("same", True) and result.get("foretold", True) for result in results) else 1


def resumed(kind, count: int) -> dict:
    """A run through an adjustment, and one that goes on from a snapshot of it."""
    straight, first = trained(kind, count, 2 * STEPS), trained(kind, count, STEPS)
    foretold, values = sparse_state(first.store, first.inner), first.store.values
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.safetensors")
        snapshot.save(path, first.state_dict(), {})
        state, _ = snapshot.load(path)
    second = trained(kind, count, 0)
    second.load_state_dict(state)
    train(second, STEPS)
    kept = sum(tensor.nbytes for tensor in plain_tensors(first.state_dict()["state"]) if tensor.dim())
    moments = foretold.kept - foretold.present - values.nbytes
    slack = 0.02 * kept + 6 * 4096  # short vectors in fp32, an end, and the tables of numbers that bits stand for
    return {
        "same": torch.equal(second.values, straight.values), "bytes per element": round(kept / count, 2),
        "foretold": abs(moments - kept) <= slack,
    }  # fmt: skip


def trained(kind, count: int, steps: int) -> SaRA:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(SIDE, SIDE), torch.nn.SiLU(), torch.nn.Linear(SIDE, SIDE))
    optimizer = SaRA(model, count=count, lr=1e-2, optimizer=kind)
    train(optimizer, steps)
    return optimizer


def train(optimizer: SaRA, steps: int) -> None:
    x = torch.linspace(-1, 1, 8 * SIDE).view(8, SIDE)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(optimizer.model(x), x.flip(0)).backward()
        optimizer.step()


def plain_tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from plain_tensors(part)


def peak(kind) -> dict:
    """Bytes per element that a step of a large vector needs beyond what it keeps (Linux)."""
    if sys.platform != "linux":
        return {}
    from sara_core.training.optimizer import make_inner

    values = torch.nn.Parameter(torch.zeros(LARGE))
    values.grad = torch.randn(LARGE)
    optimizer = make_inner(kind, values, 1e-3, 1e-3, {})
    for _ in range(2):
        optimizer.step()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    optimizer.step()
    return {"bytes per element during a step": round((memory("VmHWM") - before) / LARGE, 1)}


def memory(name: str) -> int:
    """Bytes, of this process."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
