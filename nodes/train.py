"""SaRA Train: choose a model's smallest weights and train them on images and captions."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from comfy_api.latest import io

from ..sara_core.delta import SparseDelta
from ..sara_core.errors import DeltaError
from ..sara_core.names.patterns import split_patterns
from ..sara_core.training.host import Places
from ..sara_core.training.optimizer_choice import chosen_optimizer
from ..sara_core.training.record import RunSettings, parts_of_a_run, resumed_state, selection_asked_for
from ..sara_core.training.session import TrainingSession
from ..sara_core.training.snapshot import RunSnapshots
from .checks import checked_inputs
from .host import folders, unsaved
from .host.progress import show_text
from .host.training.doubts import doubts
from .host.training.held_out import hold_out
from .host.training.isolation import training_model
from .host.training.news import News
from .host.training.noise_range import host_noise_range
from .host.training.pairing import TrainingData, read_training_data
from .host.training.parts import TRAINED
from .host.training.refusals import check_trainable
from .host.training.run import assembled_run, first_loss
from .host.training.samples import Samples, SampleSettings
from .host.training.session import NodeHost
from .host.training.text_data import TextRunSettings, check_asked_for, trains_text, with_captions
from .host.web.past_runs import kind_of_run, remembered
from .host.web.runs import LiveRun, followed
from .host.words import WORDS
from .sockets import SaraDelta
from .train_inputs import NEW_RUN, default_inputs, training_inputs
from .train_options import default_options

# Inputs that come as lists of their own; of every other one the first value counts.
LISTS = ("latents", "positive", "class_latents", "class_positive", "captions", "class_captions")


class SaRATrain(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRATrain",
            display_name="SaRA Train",
            category="SaRA",
            description="Trains only the smallest weights of a model: a sparse delta instead of an adapter.",
            search_aliases=["sparse fine-tuning", "train lora", "finetune", "dreambooth", "sara"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            inputs=training_inputs(),
            outputs=[
                SaraDelta.Output(display_name="delta", tooltip="What was trained. Save it with SaRA Save."),
                io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="Every step's loss, for Plot Loss Graph."),
            ],
        )

    @classmethod
    def validate_inputs(cls, resume=None):
        """Beside the names in the menu those of the files are accepted, which were in it before."""
        try:
            for name in resume or ():  # the input's one value; none, if it comes from another node
                if name not in (None, NEW_RUN):
                    folders.snapshot_path(name)
        except DeltaError as error:
            return str(error)
        return True

    @classmethod
    @checked_inputs
    def execute(cls, **inputs):
        lists = {name: [value for value in inputs.pop(name, []) if value is not None] for name in LISTS}
        scalars = {**default_inputs(), **{name: values[0] for name, values in inputs.items()}}
        scalars.update({**default_options(), **scalars.pop("options", {})})
        # The host runs every prompt in inference mode, where nothing can be differentiated.
        with followed(cls) as live, torch.inference_mode(False), torch.enable_grad():
            delta, losses = _train(lists, scalars, live, lambda text: None if live.is_shown() else show_text(cls, text))
        return io.NodeOutput(delta, {"loss": plottable(losses)}, ui={"sara_run": [live.kept()]})


def _train(lists, scalars, live: LiveRun, say):
    live.doing("Looking at the pictures and captions")
    check_trainable(scalars["model"])  # before its latents, which may be of several kinds because the model is
    check_asked_for(scalars, lists)
    data = _data(lists, scalars)
    settings = _run_settings(scalars, data)
    chosen = chosen_optimizer(settings, WORDS)
    state, resumed = _resumed(scalars["resume"], settings)
    live.doing("Choosing the weights to train")
    with folders.reserved_run(resumed) as run_name, training_model(
        scalars["model"], settings.selection, data.batch_shape(settings.batch_size), settings.include,
        settings.exclude, scalars["gradient_checkpointing"], preset=settings.layers,
        scoring_loss=lambda patcher, encoders: first_loss(patcher, data, settings, encoders),
        checkpoint_depth=scalars["checkpoint_depth"], clip=scalars.get("clip"), trained=TRAINED[scalars["train"]],
    ) as training:
        live.doing("Preparing the pictures and captions for the model")
        samples = _samples(scalars, training, data, settings, run_name)
        news = News(live, training.device)
        host = NodeHost(training, settings, scalars["gradient_checkpointing"], samples, say, news)
        run = assembled_run(training, data, settings, chosen)
        session = TrainingSession(run, _places(scalars, run_name, host), host)
        if state is not None:
            session.resume(state)
        host.log(data.describe(settings.steps, settings.samples_per_step))
        kind = kind_of_run(
            training, math.prod(data.images.largest.shape[-2:]), settings.batch_size, settings.grad_accumulation,
            scalars["gradient_checkpointing"],
        )  # fmt: skip
        with news.ends_with_errors(), remembered(kind, live, lambda: host.estimate and host.estimate.activations):
            host.begin(run, is_resumed=state is not None)
            for kind, doubt in doubts(data):
                host.warn(kind, doubt)
            delta = session.execute()
        unsaved.keep_last_snapshot(run_name, session.places.snapshots)
        return delta, run.training.losses


def _data(lists, scalars) -> TrainingData:
    unconditional = [scalars["unconditional"]] if "unconditional" in scalars else []
    encodes = trains_text(scalars["train"])
    # Text encoders that are trained encode the empty caption themselves.
    dropout = 0.0 if encodes and not unconditional else scalars["caption_dropout"]
    data = read_training_data(
        lists["latents"], lists["positive"], unconditional, lists["class_latents"], lists["class_positive"], dropout
    )
    if encodes:
        data = with_captions(data, lists["captions"], lists["class_captions"])
    return hold_out(data, scalars["held_out"], scalars["seed"])


def _samples(scalars, training, data: TrainingData, settings: RunSettings, run_name: str) -> Samples | None:
    if "samples" not in scalars:
        return None
    pictures = SampleSettings(**scalars["samples"], size=data.images.largest.shape[1:], seed=settings.seed)
    return Samples(training, pictures, folders.sample_folder(run_name))


def _places(scalars, run_name: str, host: NodeHost) -> Places:
    snapshots = RunSnapshots(folders.snapshot_folder(), run_name, scalars["snapshots_kept"])

    def save_finished(delta: SparseDelta) -> None:
        host.news.delta = unsaved.keep_copy(delta, run_name)
        host.log(f"until it is saved, the delta is in {WORDS.place(host.news.delta)}.")

    def save_stopped(delta: SparseDelta) -> Path:
        host.news.delta = unsaved.keep_stopped(delta, run_name, snapshots)
        return host.news.delta

    return Places(
        snapshots, scalars["snapshot_every"], save_stopped, save_finished,
        keep_without_file=lambda delta: unsaved.keep_snapshots(delta, snapshots),
        save_on_request=lambda delta: unsaved.keep_so_far(delta, run_name, host.news.run.training.step),
        keeps_last_snapshot=scalars["keep_last_snapshot"],
        other_bytes=host.samples.disk_bytes(host.settings.steps) if host.samples is not None else 0,
    )  # fmt: skip


def _run_settings(scalars, data: TrainingData) -> RunSettings:
    names = RunSettings.__dataclass_fields__
    own = {name: value for name, value in scalars.items() if name in names}
    own["noise_from"], own["noise_to"] = host_noise_range(scalars)
    own["batch_size"] = min(scalars["batch_size"], len(data.images))
    own["adjust_at"] = parts_of_a_run(scalars["adjust_at"], WORDS)
    own["include"], own["exclude"] = split_patterns(scalars["include"]), split_patterns(scalars["exclude"])
    own["selection"], own["data"] = _selection(scalars), data.digest()
    if not trains_text(scalars["train"]):
        return RunSettings(**own)
    return TextRunSettings(**own, train=scalars["train"], clip_layer=scalars["clip"].layer_idx)


def _selection(scalars) -> dict:
    amount = scalars["select_by"]
    value = scalars[amount] / 100 if amount == "density" else scalars[amount]
    return selection_asked_for(scalars["selection_rule"], amount, value, scalars["per_layer"], scalars["seed"])


def _resumed(name: str, settings: RunSettings) -> tuple[Mapping | None, Path | None]:
    """State and path of the chosen snapshot; None for a new run."""
    if name == NEW_RUN:
        return None, None
    path = folders.snapshot_path(name)
    return resumed_state(path, settings, WORDS), path


def plottable(losses: list[float]) -> list[float]:
    """The losses as core's Plot Loss Graph can draw them: it divides by the difference of the largest and smallest,
    so a run of one step, or of equal losses, gets a last value that differs in the last bit. Skipped steps, which have
    no loss, are left out."""
    losses = [loss for loss in losses if math.isfinite(loss)] or [0.0]
    losses = losses if len(losses) > 1 else [*losses, *losses]
    if min(losses) == max(losses):
        losses[-1] = math.nextafter(losses[-1], math.inf)
    return losses
