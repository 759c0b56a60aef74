"""A run of a diffusers model on captioned images, put together from what prepare.py has prepared."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ..data.denoising_loss import DenoisingLoss, repeated
from ..diffusers_bridge import comfyui_delta, identity_metadata
from ..selection.rules import RULES
from ..selection.select import check_selectable
from ..selection.trainable import trainable_weights
from ..training.optimizer import SaRA
from ..training.optimizer_choice import ChosenOptimizer
from ..training.processes import Processes
from ..training.record import RunSettings
from ..training.run import Run, denoising_loss
from ..training.words import Words
from .network import DiffusersNetwork
from .older_snapshots import as_written_now
from .prepare import Prepared

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PipelineSettings(RunSettings):
    """resolution: side of the squares, in pixels, that images are cut to; dtype: of the model, a key of DTYPES;
    buckets: whether images keep about their shape instead (data/buckets.py)

    How many processes share a batch does not matter.
    """

    resolution: int
    dtype: str
    buckets: bool = False

    def as_written_now(self, state: Mapping, saved: Mapping) -> tuple[Mapping, Mapping]:
        return as_written_now(state, saved)


def assembled_run(
    prepared: Prepared, settings: PipelineSettings, chosen: ChosenOptimizer, processes: Processes, *,
    checkpointing: bool = False, stream: bool = False, keeps_own: bool = False, words: Words = Words(),
) -> Run:  # fmt: skip
    """The run of a prepared model, which is attached to it.

    checkpointing: recompute activations in the backward; stream: leave the weights in the main memory and let them
        pass through the device one layer at a time (backward/streaming.py). Neither decides the run's numbers, up to
        their last bits.
    keeps_own: whether the class samples are images with whose captions the model is to draw as before the training

    Raises SelectionError if the selection is impossible, UnsupportedModelError for a model that cannot be trained, or
    not so.
    """
    base = identity_metadata(prepared.model, prepared.name)  # now, as long as Δ is 0
    model = _ready(prepared.model, DTYPES[settings.dtype], checkpointing, None if stream else processes.device)
    network = DiffusersNetwork(
        model, prepared.family, prepared.noising, processes.device, DTYPES[settings.dtype], words
    )  # fmt: skip

    def batches(own_part: Callable[[list], list] = list, as_before=nullcontext) -> DenoisingLoss:
        return denoising_loss(
            settings, network, prepared.samples, prepared.class_samples, own_part, as_before if keeps_own else None
        )

    # Of whole batches, so that every process chooses the same.
    scores = repeated(batches()) if RULES[settings.selection["rule"]].needs_loss else None
    optimizer = SaRA(
        model, **settings.selection, include=settings.include, exclude=settings.exclude, preset=settings.layers,
        loss=scores, lr=chosen.lr, optimizer=chosen.kind, stream_to=processes.device if stream else None,
        **chosen.options,
    )  # fmt: skip
    return Run(
        settings, optimizer.store, optimizer.selection, optimizer.inner,
        batches(processes.own_part, optimizer.store.withdrawn),
        images=len(prepared.samples),
        about_base=base,
        named=lambda delta: comfyui_delta(model, delta),
        average=processes.average_ if processes.count > 1 else None,
    )  # fmt: skip


def check_selection(model: torch.nn.Module, settings: PipelineSettings) -> None:
    """Raise SelectionError if the selection is impossible in a model, without making it."""
    holders = trainable_weights(model, settings.include, settings.exclude, settings.layers)
    check_selectable({name: holder.weight.detach() for name, holder in holders.items()}, **settings.selection)


def _ready(
    model: torch.nn.Module, dtype: torch.dtype, checkpointing: bool, device: torch.device | None
) -> torch.nn.Module:
    """The model as it is trained; without a device it stays where it is."""
    if device is not None:
        model = model.to(device)
    if dtype != torch.float32:  # diffusers warns of every cast
        model = model.to(dtype)
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model
