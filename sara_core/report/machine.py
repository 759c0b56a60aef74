"""What a report says of versions and of the machine."""

import ctypes
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import torch

from ..wording import readable_size

# Distributions that decide what is computed, how and where.
_DISTRIBUTIONS = (
    "torch", "numpy", "safetensors", "diffusers", "transformers", "accelerate", "peft", "triton", "xformers",
    "bitsandbytes", "comfyui-frontend-package", "comfy-kitchen", "comfy-aimdo",
)  # fmt: skip
_PROJECT = "sara-sparse-delta"


def versions() -> dict[str, str]:
    """Name → version, of what is installed; nothing is imported for it."""
    found = {"sara_core": own_version(), "Python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def own_version() -> str:
    """As pyproject.toml says it beside a node pack, else as the installed library does; "unknown" without either."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    try:
        text = project.read_text(encoding="utf-8")
    except OSError:
        text = ""
    if f'name = "{_PROJECT}"' in text and (match := re.search(r'^version = "(.+)"', text, re.M)):
        return match[1]
    try:
        return importlib.metadata.version(_PROJECT)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def machine() -> dict[str, str]:
    """Name → text: system, processor, memory, GPUs."""
    total = _memory()
    found = {
        "system": platform.platform(),
        "processor": f"{_processor()}, {os.cpu_count()} cores, torch uses {torch.backends.cpu.get_cpu_capability()}",
        "memory": "unknown" if total is None else readable_size(total),
    }
    return found | {f"GPU {number}": text for number, text in enumerate(_gpus())}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class _WindowsMemory(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64)]
    _fields_ += [(f"other_{number}", ctypes.c_uint64) for number in range(6)]


def _memory() -> int | None:
    """Bytes of main memory, None where the system does not say."""
    try:
        if sys.platform == "win32":
            status = _WindowsMemory(length=ctypes.sizeof(_WindowsMemory))
            return status.total if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _gpus() -> list[str]:
    built_for = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    try:
        for module, runtime in ((torch.cuda, built_for), (torch.xpu, "XPU")):
            if module.is_available():
                found = map(module.get_device_properties, range(module.device_count()))
                # A card of "24 GB" has 24 GiB: in tens it would seem to be another card.
                return [f"{one.name}, {one.total_memory / 2**30:.0f} GiB, {runtime}" for one in found]
        return ["Apple's, in main memory"] if torch.backends.mps.is_available() else ["none that torch can use"]
    except (RuntimeError, AssertionError) as error:  # a driver that is broken, or too old for this torch
        return [f"torch cannot use it: {error}"]
