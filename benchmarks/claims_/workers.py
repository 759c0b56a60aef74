"""Cells measured by several processes at a time, each with a bench of its own: figures are those of one process, for a
cell's come from its seed alone."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from demo import comfy_host

from .bench import Bench
from .lines import Job
from .protocol import Cell
from .training import Settings


class Workers:
    """comfyui: its folder; like: the bench that each process has one of; threads: of each process. A context manager,
    which ends them."""

    def __init__(self, processes: int, threads: int, comfyui: Path, like: Bench):
        given = threads, comfyui, like.work, like.settings, like.judged
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=given)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown(cancel_futures=True)

    def job(self, cell: Cell) -> Job:
        """As Bench.job, but measured by whichever process is free."""
        return Job(cell._asdict(), lambda: self._pool.submit(_measured, cell).result())


_bench: Bench | None = None  # of a process of the pool


def _begin(threads: int, comfyui: Path, work: Path, settings: Settings, judged: int) -> None:
    global _bench
    torch.set_num_threads(threads)
    comfy_host.prepare(comfyui)
    _bench = Bench(work, settings, judged)


def _measured(cell: Cell) -> dict:
    return _bench.measured(cell)
