"""Work of the bench done by several processes at a time, each with a bench of its own: figures are those of one
process, for a cell's come from its seed alone."""

import itertools
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import torch

from demo import comfy_host

from . import parts
from .bench import Bench
from .lines import Job
from .protocol import Cell
from .training import Settings

CAPTIONS_AT_A_TIME = 10
PARTS_TOLD_OF = 20  # one of so many
_LAST = float("inf")  # behind everything else


class Workers:
    """comfyui: its folder; like: the bench that each process has one of; threads: of each process. A context manager,
    which ends them.

    A process in which something failed is replaced by a new one: it may have died, and after an error on a GPU whatever
    comes next fails as well.
    """

    def __init__(self, processes: int, threads: int, comfyui: Path, like: Bench):
        self.processes, self._is_stopped = processes, False
        self._given = threads, comfyui, like.work, like.settings, like.judged, like.device
        self._asked: queue.PriorityQueue = queue.PriorityQueue()
        self._number = itertools.count()  # among equals the first comes first
        self._lanes = [Thread(target=self._serve, daemon=True) for _ in range(processes)]
        for lane in self._lanes:
            lane.start()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception) -> None:
        self.stop()
        for _ in self._lanes:
            self._put(_LAST, None)
        for lane in self._lanes:
            lane.join()

    def stop(self) -> None:
        """What has not begun is not begun any more: whoever waits for it has a CancelledError."""
        self._is_stopped = True

    def job(self, cell: Cell, rank: float = 0) -> Job:
        """As Bench.job, but measured by whichever process is free; those of the lowest rank first."""
        return Job(cell._asdict(), lambda: self._done(rank, _measured, cell))

    def jobs(self, part: str, rates: Mapping[tuple[str, float], float], like: Bench) -> list[Job]:
        """The jobs of a part, at these learning rates, each measured by whichever process is free.

        like: a bench as the processes have, which measures nothing
        """
        own = parts.jobs(part, like, rates)
        return [Job(job.key, partial(self._done, 0, _of_part, part, dict(rates), number))
                for number, job in enumerate(own)]  # fmt: skip

    def encode(self, captions: Sequence[str], rank: float, called: str, say: Callable[[str], None] = print) -> None:
        """Have captions encoded and kept, without waiting for it: what has a higher rank begins behind them. What could
        not be encoded, a cell tries again and says why.

        called: what they are the captions of
        """
        parts = [captions[at : at + CAPTIONS_AT_A_TIME] for at in range(0, len(captions), CAPTIONS_AT_A_TIME)]
        left = itertools.count(len(parts) - 1, -1)

        def told(_asked: Future) -> None:
            if (parts_left := next(left)) % PARTS_TOLD_OF == 0:
                say(f"captions of {called}: {parts_left * CAPTIONS_AT_A_TIME} of {len(captions)} left to encode")

        for part in parts:
            self._put(rank, _encoded, part).add_done_callback(told)

    def _done(self, rank: float, function: Callable, *arguments):
        return self._put(rank, function, *arguments).result()

    def _put(self, rank: float, function: Callable | None, *arguments) -> Future:
        future: Future = Future()
        self._asked.put((rank, next(self._number), future, function, arguments))
        return future

    def _serve(self) -> None:
        """Hand what is asked for to a process of one's own, until the end."""
        process = self._new_process()
        while True:
            _, _, future, function, arguments = self._asked.get()
            if function is None:
                break
            if self._is_stopped:
                future.cancel()
                future.set_running_or_notify_cancel()
                continue
            try:
                future.set_result(process.submit(function, *arguments).result())
            except BaseException as error:
                process.shutdown(wait=False)
                process = self._new_process()
                future.set_exception(error)
        process.shutdown()

    def _new_process(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=self._given)


# Of a process of the pool.
_bench: Bench | None = None
_jobs: dict[str, list[Job]] = {}


def _begin(threads: int, comfyui: Path, work: Path, settings: Settings, judged: int, device: str) -> None:
    global _bench
    torch.set_num_threads(threads)
    comfy_host.prepare(comfyui)
    _bench = Bench(work, settings, judged, device)


def _measured(cell: Cell) -> dict:
    return _bench.measured(cell)


def _of_part(part: str, rates: dict[tuple[str, float], float], number: int) -> dict:
    # The same jobs for all of a process: some keep what others need as well.
    if part not in _jobs:
        _jobs[part] = parts.jobs(part, _bench, rates)
    return _jobs[part][number].measure()


def _encoded(captions: Sequence[str]) -> None:
    _bench.contexts.keep(captions)
