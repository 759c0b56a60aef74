"""One training in a WebUI, from what was asked for to a delta among the others."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sara_core.data.captioning import Captioning
from sara_core.data.dataset import Share, read_folders, read_pictures
from sara_core.data.denoising_loss import DenoisingLoss, Sample, repeated
from sara_core.data.image_folder import ImageFolder, digest_of_both
from sara_core.data.noising import DiffusionNoising
from sara_core.errors import TrainingError
from sara_core.pipelines.network import DiffusersNetwork
from sara_core.training.optimizer import make_inner
from sara_core.training.optimizer_choice import ChosenOptimizer, chosen_optimizer
from sara_core.training.record import resumed_state
from sara_core.training.run import Run, denoising_loss
from sara_core.training.session import TrainingSession

from ..console import log
from .base import about_base, by_comfyuis_names
from .host import TrainedModel, TrainingHost
from .places import WORDS, places, remember, reserved_run, sample_folder
from .progress import Progress
from .samples import Samples, padded
from .session import WebSession
from .settings import WebSettings, prompts, run_settings
from .sparse_layers import FP16_LOSS_SCALE, Trained, sparse_layers


class Folders(NamedTuple):
    """folder: of pictures and captions; class_folder: of others of the subject's kind, which are not to be forgotten"""

    folder: Path
    class_folder: Path | None = None

    def as_told(self) -> dict[str, str]:
        """As the runner is given them."""
        return {name: str(path) for name, path in self._asdict().items() if path is not None}


class _Pictures(NamedTuple):
    """images: of a folder; pixels: of each, as sara_core.data.dataset.Pictures has them"""

    images: ImageFolder
    pixels: Sequence[torch.Tensor]


def train(host: TrainingHost, progress: Progress, folders: Folders, resumed: Path | None = None) -> None:
    """Train to the end that progress tells of then.

    progress: with the values of settings.ALL; resumed: a snapshot to go on from

    Raises SaRAError, in words that name what is kept, for whatever ends it early, a stop among it; the model has every
    bit that it had before, however it ends.
    """
    values = progress.values
    pictures = _pictures(folders.folder, values, Captioning(values["trigger"], values["caption"]), values["flip"])
    of_class = None
    if folders.class_folder is not None and values["class_caption"]:
        raise TrainingError(
            "class_caption is for a training without a folder of class pictures: leave one of them empty."
        )
    if folders.class_folder is not None:
        of_class = _pictures(folders.class_folder, values, Captioning(), mirrored_too=False)
    elif values["class_caption"]:
        of_class = pictures._replace(images=pictures.images.under(values["class_caption"]))
    with host.working():
        _check_wanted(host, progress)
        progress.tell(phase="preparing", message="Preparing the model, pictures and captions")
        with host.ready() as model:
            batch_size = min(values["batch_size"], len(pictures.images.images))
            digest = digest_of_both(pictures.images, of_class and of_class.images)
            settings = run_settings({**values, "batch_size": batch_size}, digest, model.clip_skip)
            state = None if resumed is None else resumed_state(resumed, settings, WORDS)
            samples = [
                _samples(model, settings, some, lambda: _check_wanted(host, progress)) if some else []
                for some in (pictures, of_class)
            ]
            if batch_size > 1 or of_class:
                samples = _stackable(samples)
            with reserved_run(host, progress.name, resumed) as run_name:
                remember(host, run_name, {**values, **folders.as_told()})
                _train(host, progress, model, settings, samples, run_name, state)


def _train(
    host: TrainingHost, progress: Progress, model: TrainedModel, settings: WebSettings,
    samples: Sequence[Sequence[Sample]], run_name: str, state: Mapping | None,
) -> None:  # fmt: skip
    values, chosen = progress.values, chosen_optimizer(settings, WORDS)
    base = about_base(model)
    network = DiffusersNetwork(
        model.unet, model, DiffusionNoising(model.signal.to(model.device), model.prediction), model.device,
        torch.float32, WORDS,
    )  # fmt: skip

    def batches(as_before=nullcontext) -> DenoisingLoss:
        return denoising_loss(
            settings, network, *samples, as_before=as_before if values["class_caption"] else None
        )  # fmt: skip

    progress.tell(message="Choosing the weights to train")
    with sparse_layers(
        model, settings, lambda: repeated(batches()), values["gradient_checkpointing"]
    ) as trained:
        session = WebSession(
            host, progress, model.device, _drawn(host, progress, model, settings, values),
            sample_folder(host, run_name), values["sample_every"],
        )  # fmt: skip
        run = _assembled(trained, settings, chosen, batches(trained.store.withdrawn), model, base, len(samples[0]))
        files = places(host, progress.name, run_name, values, saved=lambda path: progress.tell(delta=path))
        training = TrainingSession(run, files, session)
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
        batches, images=images, about_base=base, named=lambda delta: by_comfyuis_names(model, delta), scaler=scaler,
    )  # fmt: skip


def _pictures(folder: Path, values: Mapping[str, Any], captioning: Captioning, mirrored_too: bool) -> _Pictures:
    images = read_folders([Share(folder)], captioning, mirrored_too)
    log.info(f"SaRA: {images.text()}")
    return _Pictures(images, read_pictures(images.images, values["resolution"], values["buckets"]).pixels)


@torch.no_grad()
def _samples(
    model: TrainedModel, settings: WebSettings, pictures: _Pictures, check: Callable[[], None]
) -> list[Sample]:
    conditions = functools.cache(model.conditions)
    latents: dict[int, torch.Tensor] = {}
    samples = []
    for image, picture in zip(pictures.images.images, pictures.pixels):
        check()
        if id(picture) not in latents:
            latents[id(picture)] = _finite(model.latent(picture, settings.seed), image.path)
        size = (picture.shape[1], picture.shape[0])
        empty = conditions("", size) if settings.caption_dropout else None
        samples.append(Sample(latents[id(picture)], conditions(image.caption, size), empty))
    return samples


def _stackable(sets: Sequence[Sequence[Sample]]) -> list[list[Sample]]:
    """With conditions of equal lengths: samples of all sets may be in one batch."""
    every = [one for samples in sets for one in samples]
    told = iter(padded([part for one in every for part in (one.conditions, one.unconditional) if part is not None]))
    return [
        [Sample(one.latent, next(told), None if one.unconditional is None else next(told)) for one in samples]
        for samples in sets
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
