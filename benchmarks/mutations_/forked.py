"""Pytest in a forked process, which finds the large libraries imported already: they take longer than most tests."""

import contextlib
import importlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

OWN = {"benchmarks", "demo", "devtools", "nodes", "sara_core", "tests"}
LIBRARIES = (
    "numpy", "torch", "torch.profiler", "pytest", "hypothesis", "safetensors.torch", "diffusers", "transformers",
    "peft", "peft.tuners.tuners_utils", "matplotlib.figure", "sklearn", "PIL.Image",
)  # fmt: skip
LAZY = {
    "diffusers": ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
    "transformers": ("CLIPTextModel", "CLIPTokenizer", "T5EncoderModel", "T5TokenizerFast"),
}
# Of the address space: a mistake in a size must not take the memory of the whole machine.
MEMORY = 24 << 30
POLL_SECONDS = 0.02
# Seconds of the clock for one of the processor's: other programs may want it too.
SLOWEST = 6


class Ended(NamedTuple):
    """status: pytest's, negative for a signal, None if the time was over; result: of the plugin, None if it ended
    before; seconds: how long it took, of the clock"""

    status: int | None
    result: object
    seconds: float


def preload() -> None:
    """Import what the tests import beside our own code. One thread: a pool of more does not survive a fork."""
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    for name in LIBRARIES:
        module = importlib.import_module(name)
        for attribute in LAZY.get(name, ()):
            getattr(module, attribute)
    sys.modules["torch"].set_num_threads(1)


def run_pytest(folder: Path, arguments: Sequence[str], plugin, seconds: float) -> Ended:
    """Run pytest in `folder`, a copy of the repository, with a plugin whose `result` JSON can hold.

    seconds: of the processor that it may take
    """
    scratch = folder.parent
    answer, begin = scratch / "result.json", time.perf_counter()
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            _child(folder, [*arguments, f"--basetemp={scratch / 'tmp'}"], plugin, answer, math.ceil(seconds))
        finally:
            os._exit(70)  # it did not even begin
    try:
        status = _waited(child, begin + SLOWEST * seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it has started goes too
    result = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else None
    return Ended(None if status == -signal.SIGXCPU else status, result, time.perf_counter() - begin)


def _waited(child: int, deadline: float) -> int | None:
    while time.perf_counter() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(folder: Path, arguments: list[str], plugin, answer: Path, seconds: int) -> None:
    import resource

    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    output = os.open(folder.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    root = str(Path(__file__).resolve().parents[2])
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", root))]
    os.chdir(folder)
    import hypothesis
    import pytest

    hypothesis.settings.register_profile("mutations", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutations")
    status = pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[plugin])
    answer.write_text(json.dumps(plugin.result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(int(status))
