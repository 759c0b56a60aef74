"""SaRA Train Options and SaRA Train Samples: what SaRA Train can do beyond its own inputs."""

from comfy_api.latest import io

from .checks import checked_inputs
from .host.prompt_texts import text_behind
from .host.training.parts import TRAINED
from .settings import setting_input
from .sockets import SaraOptions, SaraSamples


class SaRATrainOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRATrainOptions",
            display_name="SaRA Train Options",
            category="SaRA",
            description="Optimizer, learning-rate schedule, noise levels, snapshots and other settings of SaRA Train.",
            search_aliases=["sara", "optimizer", "scheduler", "min snr", "caption dropout"],
            inputs=_options(),
            outputs=[SaraOptions.Output(display_name="options", tooltip="For SaRA Train.")],
        )

    @classmethod
    @checked_inputs
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(options)


class SaRATrainSamples(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRATrainSamples",
            display_name="SaRA Train Samples",
            category="SaRA",
            description="Draws pictures while SaRA Train works, shown on it and kept in output/sara_samples.",
            search_aliases=["sara", "sample images", "preview training"],
            is_input_list=True,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            inputs=_samples(),
            outputs=[SaraSamples.Output(display_name="samples", tooltip="For SaRA Train.")],
        )

    @classmethod
    @checked_inputs
    def execute(cls, positive, vae, every, steps, cfg, negative=()) -> io.NodeOutput:
        return io.NodeOutput({
            "positive": sum(positive, []), "negative": sum(negative, []) or None, "vae": vae[0],
            "every": every[0], "steps": steps[0], "cfg": cfg[0],
            "captions": (text_behind(cls.hidden.prompt, cls.hidden.unique_id, "positive"),),
        })  # fmt: skip


def default_options() -> dict:
    """What SaRA Train does without SaRA Train Options: option → value."""
    return {item.id: item.default for item in _options() if getattr(item, "default", None) is not None}


def _options():
    return [
        setting_input("optimizer"),
        setting_input("schedule"),
        setting_input("warmup_steps"),
        setting_input("weight_decay", step=0.001, round=False),
        setting_input("noise_levels"),
        setting_input("noise_level_mean", step=0.1),
        setting_input("noise_level_std", step=0.1),
        setting_input("min_snr_gamma", step=0.5),
        setting_input("caption_dropout", needs="Needs unconditional, unless text encoders are trained.", step=0.05),
        io.Conditioning.Input(
            "unconditional", optional=True, tooltip="CLIP Text Encode with empty text, for caption_dropout."
        ),
        setting_input("selection_rule"),
        setting_input("per_layer"),
        setting_input("snapshot_every"),
        setting_input("snapshots_kept", needs="With keep_last_snapshot the last one stays."),
        io.Int.Input(
            "checkpoint_depth", default=1, min=1, max=4,
            tooltip="With gradient_checkpointing: 1 recomputes whole blocks, 2 their parts (attention, feed-forward), "
            "more goes deeper. Which takes least memory depends on the model; the node shows its estimate.",
        ),
        setting_input("noise_range", optional=True),
        setting_input("noise_from", optional=True, step=0.001, round=False),
        setting_input("noise_to", optional=True, step=0.001, round=False),
        io.Combo.Input(
            "train", options=list(TRAINED), default=next(iter(TRAINED)), optional=True,
            tooltip="Whether text encoders (CLIP-L and CLIP-G, of SD1.5 and SDXL) are trained too, or alone. They need "
            "clip and captions of SaRA Train.",
        ),
        io.Boolean.Input(
            "keep_last_snapshot", default=True, optional=True,
            tooltip="A finished run leaves a snapshot of its last step, too, so that it can be trained on with more "
            "steps: about 17 bytes for each trained weight. Those of the last three runs are kept.",
        ),
        io.Int.Input(
            "held_out", default=0, min=0, max=1000, optional=True,
            tooltip="So many pictures are not trained on. Their loss is drawn beside the others': when it rises again "
            "while the others fall, the pictures are being learned by heart. Mirror images of SaRA Dataset are held "
            "out with them. 0 is off.",
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
