"""SaRA Train: choose a model's smallest weights and train them on images and captions."""

import json
import logging
import math

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..sara_core.errors import SaRAError, TrainingError
from ..sara_core.optimizer import learning_rate_for, make_inner
from ..sara_core.training import TrainingSettings, train
from .host.dataset import prepare_samples, split_conditioning, split_latents
from .host.denoiser import DenoisingLoss
from .host.family import FAMILY_METADATA, model_family
from .host.folders import new_output_path, relative_to_output
from .host.isolation import training_model
from .host.progress import show_text
from .sockets import SaraDelta

# Below this the paper's rule leaves a run of ordinary length without effect: θ is too large for it.
USELESS_LEARNING_RATE = 1e-6


class SaRATrain(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRATrain",
            display_name="SaRA Train",
            category="model/training",
            description="Trains only the smallest weights of a model: a sparse delta instead of an adapter.",
            search_aliases=["sparse fine-tuning", "train lora", "finetune", "sara"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to train. It is left exactly as it was."),
                io.Latent.Input("latents", tooltip="The training images, VAE-encoded. Sizes may differ."),
                io.Conditioning.Input(
                    "positive", tooltip="One encoded caption per image, in the same order, or one for all images."
                ),
                io.Combo.Input(
                    "select_by", options=["density", "count", "threshold"], default="density",
                    tooltip="Which of the next three numbers says how many weights are trained.",
                ),
                io.Float.Input(
                    "density", default=1.0, min=0.001, max=99.0, step=0.01,
                    tooltip="Percent of the weights to train, smallest first. 1 is a good start, 5 learns more.",
                ),
                io.Int.Input(
                    "count", default=5_000_000, min=1, max=2**31 - 1,
                    tooltip="Number of weights that are trained, smallest first.",
                ),
                io.Float.Input(
                    "threshold", default=0.002, min=0.0, max=10.0, step=0.0001, round=False,
                    tooltip="Weights whose size is below this are trained. The paper uses 0.002, 0.0008 and 0.0002 "
                    "for Stable Diffusion.",
                ),
                io.Int.Input("steps", default=500, min=1, max=1_000_000, tooltip="Number of training steps."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Images per forward pass."),
                io.Int.Input(
                    "grad_accumulation", default=1, min=1, max=1024,
                    tooltip="Forward passes per step: a larger batch without more memory.",
                ),
                io.Float.Input(
                    "learning_rate", default=0.0, min=0.0, max=1.0, step=0.00001, round=False,
                    tooltip="0 takes the paper's rule: the smaller the trained weights, the higher the rate.",
                ),
                io.Float.Input(
                    "max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.1,
                    tooltip="Gradients larger than this are scaled down to it. 0 switches that off.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing", default=True,
                    tooltip="Needs much less memory for a somewhat longer step. Switch off if memory is plenty.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Order of the images, noise and noise levels.",
                ),
                io.String.Input(
                    "include", default="", optional=True, advanced=True,
                    tooltip="Train only weights whose name contains one of these words (separated by commas), "
                    "like attn2. Empty: all Linear and Conv weights.",
                ),
                io.String.Input(
                    "exclude", default="", optional=True, advanced=True,
                    tooltip="Leave out weights whose name contains one of these words (separated by commas).",
                ),
            ],
            outputs=[
                SaraDelta.Output(display_name="delta", tooltip="What was trained. Save it with SaRA Save."),
                io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="Every step's loss, for Plot Loss Graph."),
            ],
        )

    @classmethod
    def execute(cls, latents, positive, include=("",), exclude=("",), **scalars):
        settings = {name: values[0] for name, values in scalars.items()}
        model = settings.pop("model")
        patterns = {"include": _words(include[0]), "exclude": _words(exclude[0])}
        # The host runs every prompt in inference mode, where nothing can be differentiated.
        with torch.inference_mode(False), torch.enable_grad():
            delta, losses = _train(model, latents, positive, settings, patterns, lambda text: show_text(cls, text))
        return io.NodeOutput(delta, {"loss": plottable(losses)})


def _train(model, latents, positive, settings, patterns, say):
    images = split_latents(latents)
    captions = split_conditioning(positive, len(images))
    batch_size = min(settings["batch_size"], len(images))
    batch_shape = (batch_size, *images[0].shape[1:])
    rule = {settings["select_by"]: settings[settings["select_by"]]}
    if "density" in rule:
        rule["density"] /= 100
    checkpointing = settings["gradient_checkpointing"]

    with training_model(model, rule, batch_shape, gradient_checkpointing=checkpointing, **patterns) as training:
        store, theta = training.store, training.selection.theta
        rate = settings["learning_rate"] or learning_rate_for(theta)
        if rate < USELESS_LEARNING_RATE:
            logging.warning(
                f"SaRA: the paper's rule gives a learning rate of {rate:.1e} for weights up to {theta:.3g}, too low to "
                "learn anything. Lower the density, or set learning_rate (1e-4 to 1e-3)."
            )
        samples = prepare_samples(training.patcher, images, captions, settings["seed"])
        loss = DenoisingLoss(training.patcher, samples, batch_size, settings["seed"])
        optimizer = make_inner(torch.optim.AdamW, store.values, theta, rate, {})
        progress = comfy.utils.ProgressBar(settings["steps"])
        losses = []

        def on_step(step, value):
            losses.append(value)
            progress.update_absolute(step)
            say(f"step {step} of {settings['steps']}, loss {value:.4f}")

        def delta():
            return store.delta(_metadata(training, settings, patterns, rate, len(losses), len(images)))

        try:
            train(
                store, optimizer, loss,
                TrainingSettings(settings["steps"], settings["grad_accumulation"], settings["max_grad_norm"]),
                on_step, comfy.model_management.throw_exception_if_processing_interrupted,
                _loss_scaler(training),
            )
        except BaseException as error:  # the host's Cancel is no Exception
            kept = _keep(delta, len(losses))
            if isinstance(error, TrainingError):
                raise TrainingError(f"{error} {kept}") from error
            raise
        say(f"{training.selection.count:,} weights trained in {len(losses)} steps, learning rate {rate:.2g}")
        return delta(), losses


def _loss_scaler(training):
    """Gradients of an fp16 forward vanish unless the loss is scaled up."""
    half = training.patcher.model.get_dtype_inference() == torch.float16
    return torch.amp.GradScaler(training.device.type, init_scale=2.0**12, enabled=half)


def _keep(delta, steps: int) -> str:
    """Write what was trained before the run ended early to output/sara; returns a sentence about it."""
    if steps == 0:
        return "No step was completed, so there is nothing to keep."
    try:
        path = new_output_path("sara/stopped")
        delta().save(path)
        kept = f"What was trained in {steps} steps is in output/{relative_to_output(path)}."
    except SaRAError as error:
        kept = f"What was trained in {steps} steps could not be saved: {error}"
    logging.warning(f"SaRA: training ended early. {kept}")
    return kept


def _metadata(training, settings, patterns, rate, steps, images) -> dict[str, str]:
    selection = training.selection
    selected = {**selection.rule, "theta": selection.theta, "elements": selection.count, "of": selection.candidates}
    trained = {
        "steps": steps, "batch_size": settings["batch_size"], "grad_accumulation": settings["grad_accumulation"],
        "optimizer": "AdamW", "learning_rate": rate, "max_grad_norm": settings["max_grad_norm"],
        "seed": settings["seed"], "images": images,
    }
    return {
        "sara.selection": json.dumps({**selected, **patterns}),
        "sara.training": json.dumps(trained),
        "sara.base": training.store.base_fingerprint,
        FAMILY_METADATA: model_family(training.patcher),
    }


def _words(patterns: str) -> list[str]:
    return [word.strip() for word in patterns.split(",") if word.strip()]


def plottable(losses: list[float]) -> list[float]:
    """The losses as core's Plot Loss Graph can draw them: it divides by the difference of the largest and smallest,
    so a run of one step, or of equal losses, gets a last value that differs in the last bit."""
    losses = list(losses) if len(losses) > 1 else [*losses, *losses]
    if min(losses) == max(losses):
        losses[-1] = math.nextafter(losses[-1], math.inf)
    return losses
