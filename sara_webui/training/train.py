"""One training in a WebUI, from what was asked for to a delta among the others."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sara_core.data.captioning import Captioning
from sara_core.data.dataset import Share, read_folders, read_pictures
from sara_core.data.denoising_loss import DenoisingLoss, Sample, repeated
from sara_core.data.image_folder import ImageFolder
from sara_core.data.noising import DiffusionNoising
from sara_core.delta import metadata as keys
from sara_core.errors import TrainingError
from sara_core.models.identity import identity_of
from sara_core.names.outline import outline_of
from sara_core.pipelines.network import DiffusersNetwork
from sara_core.training.optimizer import make_inner
from sara_core.training.optimizer_choice import ChosenOptimizer, chosen_optimizer
from sara_core.training.record import resumed_state
from sara_core.training.run import Run, denoising_loss
from sara_core.training.session import TrainingSession

from .host import TrainedModel, TrainingHost
from .places import WORDS, places, remember, reserved_run, sample_folder
from .progress import Progress
from .samples import Samples, padded
from .session import WebSession
from .settings import WebSettings, prompts, run_settings
from .sparse_layers import FP16_LOSS_SCALE, Trained, sparse_layers


def train(host: TrainingHost, progress: Progress, folder: Path, resumed: Path | None = None) -> None:
    """Train to the end that progress tells of then.

    progress: with the values of settings.ALL; folder: of pictures and captions; resumed: a snapshot to go on from

    Raises SaRAError, in words that name what is kept, for whatever ends it early, a stop among it; the model has every
    bit that it had before, however it ends.
    """
    values = progress.values
    if reason := host.refusal():
        raise TrainingError(reason)
    images = _images(folder, values)
    pictures = read_pictures(images.images, values["resolution"], values["buckets"])
    with host.working():
        _check_wanted(host, progress)
        progress.tell(phase="preparing", message="Preparing the model, pictures and captions")
        with host.ready() as model:
            batch_size = min(values["batch_size"], len(images.images))
            settings = run_settings({**values, "batch_size": batch_size}, images.digest(), model.clip_skip)
            state = None if resumed is None else resumed_state(resumed, settings, WORDS)
            samples = _samples(model, settings, images, pictures.pixels, lambda: _check_wanted(host, progress))
            with reserved_run(host, progress.name, resumed) as run_name:
                remember(host, run_name, values, str(folder))
                _train(host, progress, model, settings, samples, run_name, state)
    progress.tell(delta=host.deltas / f"{progress.name}.safetensors")


def _train(
    host: TrainingHost, progress: Progress, model: TrainedModel, settings: WebSettings, samples: Sequence[Sample],
    run_name: str, state: Mapping | None,
) -> None:  # fmt: skip
    values, chosen = progress.values, chosen_optimizer(settings, WORDS)
    base = {**identity_of(_by_comfyuis_names(model.unet), model.name), **_family(model)}
    network = DiffusersNetwork(
        model.unet, model, DiffusionNoising(model.signal.to(model.device), model.prediction), model.device,
        torch.float32, WORDS,
    )  # fmt: skip

    def batches() -> DenoisingLoss:
        return denoising_loss(settings, network, samples)

    progress.tell(message="Choosing the weights to train")
    with sparse_layers(
        model, settings, lambda: repeated(batches()), values["gradient_checkpointing"]
    ) as trained:
        session = WebSession(
            host, progress, model.device, _drawn(host, progress, model, settings, values),
            sample_folder(host, run_name), values["sample_every"],
        )  # fmt: skip
        run = _assembled(trained, settings, chosen, batches(), model, base, len(samples))
        training = TrainingSession(run, places(host, progress.name, run_name, values), session)
        if state is not None:
            training.resume(state)
        session.log(
            f"training {run.selection.count:,} of {run.selection.candidates:,} weights, learning rate "
            f"{run.learning_rate:.2g}"
        )
        session.begin(run, trained.module)
        training.execute()
    left = training.places.snapshots.existing()
    progress.tell(snapshot=left[-1].stem if left else None)


def _assembled(
    trained: Trained, settings: WebSettings, chosen: ChosenOptimizer, batches: DenoisingLoss, model: TrainedModel,
    base: Mapping[str, str], images: int,
) -> Run:  # fmt: skip
    store, selection = trained.store, trained.selection
    scaler = torch.amp.GradScaler(model.device.type, init_scale=FP16_LOSS_SCALE) if model.is_half else None
    return Run(
        settings, store, selection, make_inner(chosen.kind, store.values, selection.theta, chosen.lr, chosen.options),
        batches, images=images, about_base=base, scaler=scaler,
    )  # fmt: skip


def _images(folder: Path, values: Mapping[str, Any]) -> ImageFolder:
    images = read_folders([Share(folder)], Captioning(values["trigger"], values["caption"]), values["flip"])
    logging.info(f"SaRA: {images.text()}")
    return images


@torch.no_grad()
def _samples(
    model: TrainedModel, settings: WebSettings, images: ImageFolder, pixels: Sequence[torch.Tensor],
    check: Callable[[], None],
) -> list[Sample]:  # fmt: skip
    conditions = functools.cache(model.conditions)
    latents: dict[int, torch.Tensor] = {}
    samples = []
    for image, picture in zip(images.images, pixels):
        check()
        if id(picture) not in latents:
            latents[id(picture)] = _finite(model.latent(picture, settings.seed), image.path)
        size = (picture.shape[1], picture.shape[0])
        empty = conditions("", size) if settings.caption_dropout else None
        samples.append(Sample(latents[id(picture)], conditions(image.caption, size), empty))
    return _stackable(samples) if settings.batch_size > 1 else samples


def _stackable(samples: Sequence[Sample]) -> list[Sample]:
    told = padded([part for one in samples for part in (one.conditions, one.unconditional) if part is not None])
    following = iter(told)
    return [
        Sample(one.latent, next(following), None if one.unconditional is None else next(following)) for one in samples
    ]


def _finite(latent: torch.Tensor, path: Path) -> torch.Tensor:
    if not torch.isfinite(latent).all():
        raise TrainingError(
            f"The VAE makes values that are no numbers of '{path.name}', as some do in fp16: start the WebUI with "
            "--no-half-vae, or choose another VAE."
        )
    return latent


def _drawn(
    host: TrainingHost, progress: Progress, model: TrainedModel, settings: WebSettings, values: Mapping[str, Any]
) -> Samples | None:
    wanted = prompts(values)
    if not wanted:
        return None
    size = (settings.resolution, settings.resolution)
    with torch.no_grad():
        return Samples(model, wanted, size, settings.seed, lambda: _check_wanted(host, progress))


def _check_wanted(host: TrainingHost, progress: Progress) -> None:
    if progress.is_asked("stop") or host.is_interrupted():
        raise KeyboardInterrupt


def _by_comfyuis_names(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"diffusion_model.{name}": weight.detach() for name, weight in unet.state_dict().items()}


def _family(model: TrainedModel) -> dict[str, str]:
    family = outline_of({name: tuple(weight.shape) for name, weight in model.unet.state_dict().items()}).family
    return {keys.FAMILY: family} if family else {}
