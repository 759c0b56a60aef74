"""The process that checks and measures on the GPU, for gpu.py, which survives it.

    python -m benchmarks.gpu_.worker LANE DEVICE SIZE < ITEM_NAMES

What it has to say are lines of JSON behind a mark: {"about": …} and {"names": […]}, of all items of the lane, to which
those to run are the answer, one a line; and for each item {"begin": name}, {"result": …} for each result,
{"end": name, "seconds": …}. After a CUDA error that spoils the whole process it ends with SPOILED: whoever started it
goes on in another one.
"""

import gc
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import traceback
from functools import partial

import torch

from benchmarks.gpu_ import model_checks
from benchmarks.gpu_ import route_checks
from benchmarks.gpu_ import steps
from benchmarks.lib.report import machine
from sara_core.backward import weight_gradient

MARK, SPOILED = "@@", 3
LANES = {
    **{f"routes {dtype}": partial(route_checks.items, dtype) for dtype in route_checks.DTYPES},
    "model gradients": model_checks.gradient_items,
    "model": model_checks.items,
    "steps": steps.items,
}
LANES["checks"] = lambda device, small: {
    name: task for lane in LANES if lane not in ("checks", "steps") for name, task in LANES[lane](device, small).items()
}


def say(message: dict) -> None:
    print(MARK + json.dumps(message, ensure_ascii=True), flush=True)


def run(name: str, task, device: str) -> None:
    say({"begin": name})
    start = time.perf_counter()
    given_up = set(weight_gradient._given_up)
    try:
        for result in task():
            say({"result": result})
    except Exception as error:
        text = "".join(traceback.format_exception(error))[-4000:]
        say({"result": {"name": "all of it", "ok": False, "exception": text}})
        traceback.clear_frames(error.__traceback__)  # and with them the memory that they hold
    for kernel in sorted(weight_gradient._given_up - given_up):
        say({"result": {"name": "a kernel was given up", "ok": False, "exception": kernel}})
    say({"end": name, "seconds": time.perf_counter() - start})
    gc.collect()
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception:
            sys.exit(SPOILED)


def about(device: str) -> dict:
    """The machine, card, driver and versions."""
    found = {**machine(), "device": device, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "peft", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["kernels"] = weight_gradient._obstacle(torch.device(device)) or "run here"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found.update(
            card=properties.name, capability=f"{properties.major}.{properties.minor}",
            card_memory_mib=properties.total_memory >> 20, processors=properties.multi_processor_count,
            cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), driver=_driver(),
        )  # fmt: skip
    return found


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def main() -> None:
    lane, device, size = sys.argv[1:]
    tasks = LANES[lane](device, size == "small")
    say({"about": about(device)})
    say({"names": list(tasks)})
    for name in filter(None, sys.stdin.read().splitlines()):
        run(name, tasks[name], device)


if __name__ == "__main__":
    main()
