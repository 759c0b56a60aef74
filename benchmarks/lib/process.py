"""Measurements in processes of their own: a peak of memory cannot be taken back."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from devtools.comfyui.install import ROOT, HostError


class OutOfMemory(HostError):
    """The memory did not suffice for a measurement."""


def run_module(module: str, arguments: list[str], checkout: Path = ROOT) -> None:
    """Run a module of a checkout of this repository in a fresh interpreter; its output is repeated only if it fails.

    Raises HostError, and OutOfMemory if that is why.
    """
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, errors="replace")
    if result.returncode == -signal.SIGKILL or "OutOfMemoryError" in result.stderr:
        raise OutOfMemory(
            f"{module} ran out of memory: full fine-tuning and Train LoRA need about 16 GB free. Close other programs "
            "and try again."
        )
    if result.returncode:
        raise HostError(f"{module} failed:\n" + "\n".join(result.stderr.splitlines()[-30:]))


def measured(module: str, arguments: list[str], checkout: Path = ROOT) -> dict:
    """What a module writes as JSON into the file that it is given as its last argument."""
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        result = Path(folder, "result.json")
        run_module(module, [*arguments, str(result)], checkout)
        return json.loads(result.read_text(encoding="utf-8"))
