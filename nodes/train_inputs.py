"""The inputs of SaRA Train, in the order in which they stand on the node."""

from comfy_api.latest import io

from .host import folders
from .settings import setting_input
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
        setting_input("count"),
        setting_input("threshold", step=0.0001, round=False),
    ]


def _course():
    return [
        setting_input("steps"),
        setting_input("batch_size"),
        setting_input("grad_accumulation"),
        setting_input("learning_rate", step=0.00001, round=False),
        setting_input("max_grad_norm", step=0.1),
        io.Boolean.Input(
            "gradient_checkpointing", default=True,
            tooltip="Needs much less memory for a somewhat longer step. Switch off if memory is plenty.",
        ),
        setting_input("seed", control_after_generate=io.ControlAfterGenerate.fixed),
    ]


def _method():
    seldom = {"optional": True, "advanced": True}
    return [
        setting_input("layers", **seldom),
        setting_input("include", **seldom),
        setting_input("exclude", **seldom),
        setting_input("adjust_at", **seldom),
        setting_input("low_rank_weight", step=0.00001, round=False, **seldom),
    ]


def _further():
    return [
        io.Latent.Input(
            "class_latents", optional=True,
            tooltip="To learn a subject (DreamBooth): pictures of other things of its kind, VAE-encoded, so that the "
            "model does not forget them.",
        ),
        io.Conditioning.Input(
            "class_positive", optional=True,
            tooltip="The captions of the class pictures. Without class_latents: captions, one for each image or one "
            "for all, with which the model is to draw as before, like those without your new word. A step then takes "
            "more than twice as long.",
        ),
        setting_input("prior_weight", step=0.05, optional=True, advanced=True),
        io.Combo.Input(
            "resume", options=[NEW_RUN, *folders.resume_names()], default=NEW_RUN, optional=True,
            tooltip="Go on with a run: choose its snapshot and leave everything else as it was. With more steps than "
            "then, a run that was stopped or finished is trained on: up to its old end exactly as planned, beyond it "
            "at the same rate, or, with a schedule that falls, along another fall. adjust_at keeps its old steps.",
        ),
        SaraOptions.Input("options", optional=True, tooltip="From SaRA Train Options, for what is seldom changed."),
        SaraSamples.Input("samples", optional=True, tooltip="From SaRA Train Samples: pictures while training."),
        io.Clip.Input(
            "clip", optional=True,
            tooltip="The CLIP whose text encoders are trained, if SaRA Train Options says so under train. It is left "
            "exactly as it was.",
        ),
        io.String.Input(
            "captions", optional=True, force_input=True,
            tooltip="The captions as text, one per image, in the same order, or one for all images: trained text "
            "encoders encode them anew in each step.",
        ),
        io.String.Input(
            "class_captions", optional=True, force_input=True,
            tooltip="The captions of the class pictures as text, where text encoders are trained.",
        ),
    ]
