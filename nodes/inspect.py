"""What a delta is, and what a model offers to train."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..sara_core.charts.density import density_picture
from ..sara_core.charts.drawing import Sheet, stacked
from ..sara_core.charts.theta import theta_picture
from ..sara_core.delta.describe import describe
from ..sara_core.errors import SelectionError
from ..sara_core.models.survey import WeightSurvey
from .checks import checked_inputs
from .host import identity, zeroing
from .host.progress import show_text
from .sockets import SaraDelta

# Each θ takes an evaluation of the model at every noise level.
MEASURED_DENSITIES = (0.0005, 0.7)


class SaRAInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRAInspect",
            display_name="SaRA Inspect",
            category="SaRA",
            description="Shows what a SaRA delta is, how many weights of a model lie below each threshold and what "
            "setting them to zero does, and with both whether the model is the one the delta was trained on.",
            search_aliases=["inspect sara", "delta info", "lora info", "threshold", "sparsity", "density"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                SaraDelta.Input("delta", optional=True, tooltip="A delta to describe, from SaRA Loader or SaRA Train."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model to choose a threshold for, or to compare with the one the delta was trained on.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="With a latent: measures also what the model's prediction changes by, which takes some "
                    "thirty evaluations of the model.",
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="A picture, VAE-encoded, to measure the prediction on."
                ),
                io.Float.Input(
                    "threshold",
                    default=0.002,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    round=False,
                    tooltip="The threshold to mark in the picture, below which the model output has zeros.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Everything as text."),
                io.Image.Output(display_name="picture", tooltip="The density block by block, or the curves over θ."),
                io.Model.Output(
                    display_name="zeroed",
                    tooltip="The model with every Linear and Conv weight below the threshold taken for zero: draw "
                    "with it to see how little these weights do.",
                ),
            ],
        )

    @classmethod
    @checked_inputs
    def execute(cls, threshold, delta=None, model=None, positive=None, latent=None) -> io.NodeOutput:
        texts, sheets = [], []
        zeroed = ExecutionBlocker("SaRA Inspect has no model: connect one to its model input.")
        if delta is not None:
            facts = describe(delta)
            texts.append(facts.text())
            sheets.append(density_picture(f"{facts.elements:,} changes", facts.blocks))
        if model is not None:
            if delta is not None:
                texts.append(identity.verdict(model, delta).text())
            text, sheet = _survey(model, threshold, positive, latent)
            texts.append(text)
            sheets.append(sheet)
            zeroed = zeroing.zeroed_model(model, zeroing.ZeroBelow(threshold))
        if not texts:
            raise SelectionError("There is nothing to inspect: connect a delta, a model, or both.")
        show_text(cls, "\n".join(text.splitlines()[0] for text in texts))
        picture = stacked(sheets).image()
        return io.NodeOutput("\n\n".join(texts), picture, zeroed, ui=ui.PreviewImage(picture, cls=cls))


def _survey(model, threshold: float, positive, latent) -> tuple[str, Sheet]:
    survey, predictions = WeightSurvey(zeroing.layer_weights(model)), {}
    if (positive is None) != (latent is None):
        raise SelectionError("To measure the prediction, connect both positive and latent; otherwise neither.")
    if positive is not None:
        thetas = _measured_thetas(survey)
        progress = comfy.utils.ProgressBar((1 + len(thetas)) * len(zeroing.NOISE_LEVELS))

        def on_step():
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update(1)

        predictions = zeroing.prediction_changes(model, thetas, positive, latent, on_step)
    return survey.text(predictions), theta_picture(survey, threshold, predictions)


def _measured_thetas(survey: WeightSurvey) -> list[float]:
    """Four for each power of ten, where people choose."""
    low, high = MEASURED_DENSITIES
    return [row.theta for row in survey.rows() if low <= row.density <= high and row.is_round]
