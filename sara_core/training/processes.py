"""The processes of one training, as `torchrun` starts them: one per GPU, or several on the CPU."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..errors import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process among the others. rank: 0 … count − 1; device: where this one trains"""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that talks and writes files."""
        return self.rank == 0

    def own_part(self, batch: list) -> list:
        """What this process computes of a batch; together they compute all of it."""
        return batch[self.rank :: self.count]

    def average_(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` (on this process's device, of the same shape in all) by the mean over the processes."""
        if self.count > 1:
            dist.all_reduce(tensor)
            tensor /= self.count

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return here
        there = torch.tensor([float(here)], device=self.device)
        dist.all_reduce(there)
        return bool(there.item())


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Inside, the processes that torchrun started can reach each other: over NCCL with a GPU each, over gloo on the
    CPU. A process that was started by itself is alone. They leave together, but for one that raises.

    Raises TrainingError where there are more processes than GPUs.
    """
    has_gpus = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(0, 1, torch.device("cuda" if has_gpus else "cpu"))
        return
    device = torch.device("cuda", _own_gpu()) if has_gpus else torch.device("cpu")
    if has_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if has_gpus else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
        # torchrun ends all processes when one fails, at its exit too: not before the first has saved everything.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _own_gpu() -> int:
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= gpus:
        raise TrainingError(
            f"torchrun started more processes than the {gpus} GPUs that are here: give it --nproc-per-node {gpus}."
        )
    return number
