"""A run of SaRA Train, put together from a MODEL in training and what the node was given."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from ....sara_core.backward.store import Store
from ....sara_core.data.denoising_loss import DenoisingLoss, Sample, repeated
from ....sara_core.data.held_out import HeldOut
from ....sara_core.delta import metadata as keys
from ....sara_core.training.optimizer import make_inner
from ....sara_core.training.optimizer_choice import ChosenOptimizer
from ....sara_core.training.record import RunSettings
from ....sara_core.training.run import Run, denoising_loss
from ..family import model_family
from ..identity import identity_metadata
from .dataset import prepare_samples
from .denoiser import Denoiser
from .isolation import TrainingModel
from .network import HostNetwork
from .pairing import Pairs, TrainingData
from .text_encoders import EncodersInTraining
from .text_samples import TextNetwork, prepare_texts
from .unused import check_used_weights_reached


def batches(
    patcher, data: TrainingData, settings: RunSettings, encoders: EncodersInTraining | None = None,
    store: Store | None = None,
) -> DenoisingLoss:  # fmt: skip
    """The losses of a run's batches, from the first one on; the model must be loaded, and so must the text encoders, if
    they are trained. store: of what is trained; None as long as nothing is"""
    network = HostNetwork(Denoiser(patcher))
    if encoders is not None:
        network = TextNetwork(network.denoiser, encoders, settings.seed)
    sets = (data.images, data.class_images)
    own, of_class = (_samples(patcher, pairs, data, settings, encoders) if pairs else () for pairs in sets)
    as_before = (nullcontext if store is None else store.withdrawn) if data.keeps_own else None
    return denoising_loss(settings, network, own, of_class, as_before=as_before)


def _samples(
    patcher, pairs: Pairs, data: TrainingData, settings: RunSettings, encoders: EncodersInTraining | None
) -> Sequence[Sample]:
    if encoders is None:
        return prepare_samples(patcher, pairs, settings.seed, data.unconditional)
    return prepare_texts(patcher, encoders, pairs, data.unconditional, drops=settings.caption_dropout > 0)


def first_loss(
    patcher, data: TrainingData, settings: RunSettings, encoders: EncodersInTraining | None = None,
    store: Store | None = None,
) -> Callable[[], torch.Tensor]:  # fmt: skip
    """A function that computes the loss of a run's first batch, the same each time; arguments as for `batches`."""
    return repeated(batches(patcher, data, settings, encoders, store))


def assembled_run(training: TrainingModel, data: TrainingData, settings: RunSettings, chosen: ChosenOptimizer) -> Run:
    """The run of a model inside `training_model`, on its images and captions."""
    patcher, store, selection, encoders = training.patcher, training.store, training.selection, training.encoders
    base = identity_metadata(patcher)  # now, as long as Δ is 0
    losses = batches(patcher, data, settings, encoders, store)
    held_out = None
    if data.held_out:
        samples = _samples(patcher, data.held_out, data, settings, encoders)
        held_out = HeldOut(losses.network, samples, losses.draws.levels, settings.seed)
    return Run(
        settings, store, selection,
        make_inner(chosen.kind, store.values, selection.theta, chosen.lr, chosen.options),
        losses,
        images=len(data.images),
        about_base={**base, keys.FAMILY: model_family(patcher)},
        scaler=_loss_scaler(training),
        check_reached=lambda store: check_used_weights_reached(
            store, lambda: first_loss(patcher, data, settings, encoders, store)
        ),
        held_out=held_out,
    )  # fmt: skip


def _loss_scaler(training: TrainingModel) -> torch.amp.GradScaler:
    """Gradients of an fp16 forward vanish unless the loss is scaled up."""
    half = training.patcher.model.get_dtype_inference() == torch.float16
    return torch.amp.GradScaler(training.device.type, init_scale=2.0**12, enabled=half)
