"""What a process takes of the machine: its memory, and what other programs take meanwhile."""

import ctypes
import gc
import os
import time
from pathlib import Path


def give_back_freed_memory() -> None:
    """Freed memory that the process keeps would hide as much of what training takes."""
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


def reset_high_water_mark() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> float:
    """A field of this process's status in MiB: VmRSS (resident now) or VmHWM (its high-water mark)."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"This system does not report {field}: memory can be measured on Linux only.")


def cpu_seconds_of_others() -> float:
    """CPU seconds that everything but this process has used since the machine started, time stolen by its host
    included."""
    total, = (line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu "))
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, total.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


class OthersWatch:
    """How many cores other programs use, on average, from its making on."""

    def __init__(self):
        self._start, self._seconds = time.perf_counter(), cpu_seconds_of_others()

    def cores(self, own: float = 0.0) -> float:
        """own: seconds of the processor that were used for this process by others, its children"""
        return (cpu_seconds_of_others() - self._seconds - own) / (time.perf_counter() - self._start)
