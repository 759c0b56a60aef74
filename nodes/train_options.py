"""SaRA Train Options and SaRA Train Samples: what SaRA Train can do beyond its own inputs."""

from comfy_api.latest import io

from ..sara_core.data.noise_levels import DISTRIBUTIONS
from ..sara_core.selection.rules import RULES
from ..sara_core.training.optimizer_choice import OPTIMIZERS
from ..sara_core.training.schedule import SCHEDULES
from .sockets import SaraOptions, SaraSamples


class SaRATrainOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRATrainOptions",
            display_name="SaRA Train Options",
            category="model/training",
            description="Optimizer, learning-rate schedule, noise levels, snapshots and other settings of SaRA Train.",
            search_aliases=["sara", "optimizer", "scheduler", "min snr", "caption dropout"],
            inputs=_options(),
            outputs=[SaraOptions.Output(display_name="options", tooltip="For SaRA Train.")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(options)


class SaRATrainSamples(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRATrainSamples",
            display_name="SaRA Train Samples",
            category="model/training",
            description="Draws pictures while SaRA Train works, shown on it and kept in output/sara_samples.",
            search_aliases=["sara", "sample images", "preview training"],
            is_input_list=True,
            inputs=_samples(),
            outputs=[SaraSamples.Output(display_name="samples", tooltip="For SaRA Train.")],
        )

    @classmethod
    def execute(cls, positive, vae, every, steps, cfg, negative=()) -> io.NodeOutput:
        return io.NodeOutput({
            "positive": sum(positive, []), "negative": sum(negative, []) or None, "vae": vae[0],
            "every": every[0], "steps": steps[0], "cfg": cfg[0],
        })  # fmt: skip


def default_options() -> dict:
    """What SaRA Train does without SaRA Train Options: option → value."""
    return {item.id: item.default for item in _options() if getattr(item, "default", None) is not None}


def _options():
    return [
        io.Combo.Input(
            "optimizer", options=list(OPTIMIZERS), default="AdamW",
            tooltip="AdamW is the paper's. The 8-bit one saves memory and needs bitsandbytes or torchao.",
        ),
        io.Combo.Input(
            "schedule", options=list(SCHEDULES), default="constant",
            tooltip="How the learning rate goes: it stays, falls along a cosine (the paper's), or falls evenly.",
        ),
        io.Int.Input(
            "warmup_steps", default=0, min=0, max=1_000_000,
            tooltip="The learning rate rises from 0 over this many steps.",
        ),
        io.Float.Input(
            "weight_decay", default=0.0, min=0.0, max=10.0, step=0.001, round=False,
            tooltip="Pulls the changes towards zero, that is the model towards what it was. 0 is off.",
        ),
        io.Combo.Input(
            "noise_levels", options=list(DISTRIBUTIONS), default="uniform",
            tooltip="How often each noise level is trained: all alike, or the middle ones more (as SD3 and Flux were).",
        ),
        io.Float.Input(
            "noise_level_mean", default=0.0, min=-5.0, max=5.0, step=0.1,
            tooltip="Logit-normal only: above 0 trains much noise (composition) more, below 0 little (details).",
        ),
        io.Float.Input(
            "noise_level_std", default=1.0, min=0.1, max=5.0, step=0.1,
            tooltip="Logit-normal only: smaller keeps closer to the preferred level.",
        ),
        io.Float.Input(
            "min_snr_gamma", default=0.0, min=0.0, max=100.0, step=0.5,
            tooltip="Min-SNR weighting gives low noise less weight; 5 is usual, 0 is off. For SD1.5, SD2, SDXL.",
        ),
        io.Float.Input(
            "caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05,
            tooltip="Part of the images that are trained without their caption. Needs unconditional.",
        ),
        io.Conditioning.Input(
            "unconditional", optional=True, tooltip="CLIP Text Encode with empty text, for caption_dropout."
        ),
        io.Combo.Input(
            "selection_rule", options=list(RULES), default="smallest",
            tooltip="smallest is SaRA. The others are for comparison: largest or random weights, or those that the "
            "training images' gradient finds most important (SNIP).",
        ),
        io.Boolean.Input(
            "per_layer", default=False,
            tooltip="Take the density from every layer alike, instead of from the whole model.",
        ),
        io.Int.Input(
            "snapshot_every", default=500, min=0, max=1_000_000,
            tooltip="A snapshot after so many steps, and before the last step if there is none yet, from which a run "
            "can be resumed exactly. When a run is stopped it always leaves one. 0: only then.",
        ),
        io.Int.Input(
            "snapshots_kept", default=1, min=1, max=1000,
            tooltip="How many of a run's snapshots are kept. They go when the finished delta is on the disk.",
        ),
        io.Int.Input(
            "checkpoint_depth", default=1, min=1, max=4,
            tooltip="With gradient_checkpointing: 1 recomputes whole blocks, 2 their parts (attention, feed-forward), "
            "more goes deeper. Which takes least memory depends on the model; the node shows its estimate.",
        ),
    ]


def _samples():
    return [
        io.Conditioning.Input("positive", tooltip="Captions of the pictures: one picture for each."),
        io.Vae.Input("vae", tooltip="Decodes the pictures."),
        io.Int.Input("every", default=100, min=1, max=1_000_000, tooltip="Draw after so many training steps."),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
        io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.5, tooltip="Guidance; needs negative."),
        io.Conditioning.Input("negative", optional=True, tooltip="Negative prompt; without it, guidance is off."),
    ]
