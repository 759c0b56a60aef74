"""The inputs of SaRA Train, in the order in which they stand on the node."""

from comfy_api.latest import io

from ..sara_core.names.patterns import ALL_LAYERS, PRESETS
from .host import folders
from .sockets import SaraOptions, SaraSamples

NEW_RUN = "none"


def training_inputs() -> list[io.Input]:
    """All inputs; made anew each time, because one of them lists the snapshots that are there now."""
    return [*_data(), *_selection(), *_course(), *_method(), *_further()]


def default_inputs() -> dict:
    """Input id → default, for those that a workflow may leave out."""
    return {item.id: item.default for item in _method() + _further() if getattr(item, "default", None) is not None}


def _data():
    return [
        io.Model.Input("model", tooltip="The model to train. It is left exactly as it was."),
        io.Latent.Input("latents", tooltip="The training images, VAE-encoded. Sizes may differ."),
        io.Conditioning.Input(
            "positive", tooltip="One encoded caption per image, in the same order, or one for all images."
        ),
    ]


def _selection():
    return [
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
    ]


def _course():
    return [
        io.Int.Input("steps", default=500, min=1, max=1_000_000, tooltip="Number of training steps."),
        io.Int.Input(
            "batch_size", default=1, min=1, max=1024,
            tooltip="Images per forward pass; class images come on top, as many again.",
        ),
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
    ]


def _method():
    return [
        io.Combo.Input(
            "layers", options=list(PRESETS), default=ALL_LAYERS, optional=True, advanced=True,
            tooltip="Which layers are trained at all. 'no text cross-attention' leaves what words mean alone; "
            "'temporal layers only' is for video models that have such layers.",
        ),
        io.String.Input(
            "include", default="", optional=True, advanced=True,
            tooltip="Train only weights whose name contains one of these words (separated by commas), "
            "like attn2. bias and norm train those too. Empty: all Linear and Conv weights.",
        ),
        io.String.Input(
            "exclude", default="", optional=True, advanced=True,
            tooltip="Leave out weights whose name contains one of these words (separated by commas).",
        ),
        io.String.Input(
            "adjust_at", default="0.5", optional=True, advanced=True,
            tooltip="After these parts of the run (0.5 = the middle; several with commas) the weights that have grown "
            "out of the small ones are finished, and only the others train on. Empty switches that off.",
        ),
        io.Float.Input(
            "low_rank_weight", default=0.0, min=0.0, max=1000.0, step=0.00001, round=False, optional=True,
            advanced=True, tooltip="Strength of the low-rank loss, which keeps the trained weights simple. 0 is off; "
            "start with 0.00005. (The paper says 0.005, its scripts 0.0005.)",
        ),
    ]


def _further():
    return [
        io.Latent.Input(
            "class_latents", optional=True,
            tooltip="To learn a subject (DreamBooth): pictures of other things of its kind, VAE-encoded, so that the "
            "model does not forget them.",
        ),
        io.Conditioning.Input("class_positive", optional=True, tooltip="The captions of the class pictures."),
        io.Float.Input(
            "prior_weight", default=1.0, min=0.0, max=100.0, step=0.05, optional=True, advanced=True,
            tooltip="How much the class pictures count beside the subject's.",
        ),
        io.Combo.Input(
            "resume", options=[NEW_RUN, *folders.snapshot_names()], default=NEW_RUN, optional=True, advanced=True,
            tooltip="Go on with a stopped run: choose its snapshot and leave everything else as it was.",
        ),
        SaraOptions.Input("options", optional=True, tooltip="From SaRA Train Options, for what is seldom changed."),
        SaraSamples.Input("samples", optional=True, tooltip="From SaRA Train Samples: pictures while training."),
    ]
