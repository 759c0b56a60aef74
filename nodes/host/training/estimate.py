"""The memory of a training, estimated before it begins."""

import itertools
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import comfy.model_management
import torch

from ....sara_core.data.denoising_loss import DenoisingLoss, largest_batch
from ....sara_core.memory import estimate as memory
from ....sara_core.memory.estimate import MemoryEstimate
from ....sara_core.memory.simulation import simulated
from ....sara_core.training.loop import Training
from ..base_weights import kept_by_host
from . import checkpointing
from .denoiser import Denoiser
from .isolation import TrainingModel


def estimate(training: TrainingModel, run: Training) -> MemoryEstimate | None:
    """Memory that a run will take at its peak, with batches drawn by a DenoisingLoss, before its first step.

    Patches of other nodes (attention, wrappers) and pictures drawn in between are left out; on the CPU, so is what the
    C library keeps of freed memory. The model, the run and all random numbers stay as they are. None, and a line in
    the log, if the model's code cannot be followed.
    """
    try:
        weights = _weights(training)
        state = memory.sparse_state(run.store, run.optimizer)
        between_steps = state.between_steps + (memory.low_rank_bytes(run.store) if run.low_rank else 0)
        working = max(_activations(training, run.batches), between_steps)
    except Exception as error:  # whatever a model's code may do: the training does not depend on it
        logging.warning(f"SaRA: no estimate of the memory for this model ({type(error).__name__}: {error})")
        return None
    return MemoryEstimate(weights, state.kept, working, present=weights + state.present)


def shortage(training: TrainingModel, estimate: MemoryEstimate, advice: str) -> str | None:
    """A warning, with advice, if the device has not enough free memory for what is to come; otherwise None.

    Free is also what models under dynamic VRAM have there: they make room for whatever asks for memory.
    """
    of_patcher = getattr(training.patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return memory.shortage(estimate, of_patcher(training.device), advice)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a run ended because memory was not enough."""
    host_says_so = getattr(comfy.model_management, "is_oom", lambda error: False)
    return host_says_so(error) or memory.is_out_of_memory(error)


def _weights(training: TrainingModel) -> int:
    model = training.modules()
    backup = itertools.chain.from_iterable(kept_by_host(part.patcher) for part in training.parts)
    tensors = itertools.chain(model.parameters(), model.buffers(), backup)
    return memory.bytes_of(tensors, training.device)


def _activations(training: TrainingModel, batches: DenoisingLoss) -> int:
    """Bytes that a forward and backward of the largest batch holds at its peak."""
    model = training.modules()
    # Without what other nodes have put into the options: it may keep what it is given for later.
    denoiser = Denoiser(SimpleNamespace(model=training.patcher.model, model_options={}))
    level = denoiser.sigmas[len(denoiser.sigmas) // 2]

    def peak() -> int:
        with simulated(model, training.store) as simulation:
            batch = batches.network.given(largest_batch(batches))
            noises = [torch.empty(sample.latent.shape) for sample in batch]
            denoiser.losses(batch, [level.clone() for _ in batch], noises).mean().backward()
            del batch, noises
        return simulation.peak

    with _casts_in_step(), _blocks_as_they_were(model) as blocks:
        optional = [block for block in blocks if not block.always]
        try:
            _assume(optional, False)  # as it is for most models, and saves a run
            return peak()
        except RuntimeError:  # autograd's: a block writes over its inputs, so the first run has to find out which do
            _assume(optional, None)
            peak()
            return peak()


def _assume(blocks: list[checkpointing.Block], overwrites: bool | None) -> None:
    for block in blocks:
        block.overwrites = overwrites


@contextmanager
def _casts_in_step():
    """The host keeps the memory that weights are streamed through for later uses: none of it may be made here."""
    management = comfy.model_management
    streams = getattr(management, "get_offload_stream", None)
    management.get_offload_stream = lambda device: None
    try:
        yield
    finally:
        if streams is None:
            del management.get_offload_stream
        else:
            management.get_offload_stream = streams


@contextmanager
def _blocks_as_they_were(model):
    blocks = checkpointing.installed(model)
    known = [block.overwrites for block in blocks]
    try:
        yield blocks
    finally:
        for block, overwrites in zip(blocks, known):
            block.overwrites = overwrites
