"""The memory of a training: what this process has of the device that trains, and what the training will take."""

import itertools

import psutil
import torch

from sara_core.data.denoising_loss import DenoisingLoss, largest_batch
from sara_core.data.draws import Draw
from sara_core.memory import estimate as memory
from sara_core.memory.estimate import MemoryEstimate
from sara_core.memory.simulation import simulated
from sara_core.training.run import Run

from ..console import log


def used_memory(device: torch.device) -> tuple[int, int]:
    """Bytes now, and at most as far as the device tells; of other devices than CUDA's, the process's main memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    now = psutil.Process().memory_info().rss
    return now, now


def free_memory(device: torch.device) -> int:
    """Bytes that are left: on CUDA with what torch keeps for later uses."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def foretold_memory(run: Run, module: torch.nn.Module) -> MemoryEstimate | None:
    """What a run will take at its peak, before its first step; pictures that are drawn in between are left out. Nothing
    is changed by it. None, and a line in the log, if the model's code cannot be followed.

    module: with the attached layers of the run's store
    """
    store, device = run.store, run.store.values.device
    batches: DenoisingLoss = run.training.batches
    try:
        weights = memory.bytes_of(itertools.chain(module.parameters(), module.buffers()), device)
        state = memory.sparse_state(store, run.training.optimizer)
        between_steps = state.between_steps + (memory.low_rank_bytes(store) if run.training.low_rank else 0)
        with simulated(module, store) as simulation:
            level = batches.network.levels // 2
            drawn = [Draw(sample, level, torch.empty(sample.latent.shape)) for sample in largest_batch(batches)]
            batches.network.losses(drawn).mean().backward()
        working = max(simulation.peak, between_steps)
    except Exception as error:  # whatever a model's code may do: the training does not depend on it
        log.warning(f"SaRA: no estimate of the memory for this model ({type(error).__name__}: {error})")
        return None
    return MemoryEstimate(weights, state.kept, working, present=weights + state.present)
