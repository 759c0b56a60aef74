"""The example workflows: nodes, widgets, links and notes. What is not said is left at the node's default.

Files that only a user can have (a checkpoint, a folder of pictures, a delta) are not said, nor saved: the page takes
the first that is there, and nothing is missing as long as there is one of its kind.
"""

from typing import Any, NamedTuple

from . import notes
from .notes import STYLE_FOLDER, SUBJECT_FOLDER

# Saved without the values of their widgets, all of which are at their defaults.
FILE_CHOOSERS = {
    "CheckpointLoaderSimple", "LoadImageTextDataSetFromFolder", "SaRALoader", "SaRABake", "SaRAExtract", "SaRAConvert",
}  # fmt: skip


class Node(NamedTuple):
    """at: left and top; size: width and height, both without the title bar; room: how much higher it may become when it
    has run, and in the renderer whose nodes are larger."""

    type: str
    at: tuple[int, int]
    size: tuple[int, int]
    widgets: dict[str, Any] = {}
    title: str | None = None
    room: int = 0


class Graph(NamedTuple):
    """links: (from node, output, to node, input); groups: title → nodes; nodes are named by the keys of ``nodes``."""

    nodes: dict[str, Node]
    links: list[tuple[str, str, str, str]]
    groups: dict[str, list[str]]


def _note(text: str, at: tuple[int, int], size: tuple[int, int]) -> Node:
    return Node("MarkdownNote", at, size, {"": text}, "Note")


def _checkpoint(at: tuple[int, int]) -> Node:
    return Node("CheckpointLoaderSimple", at, (320, 110), room=40)


_SCALE = {"upscale_method": "lanczos", "width": 512, "height": 512, "crop": "center"}

TRAIN = Graph(
    nodes={
        "help": _note(notes.TRAIN_STEPS, (0, -320), (700, 500)),
        "settings help": _note(notes.TRAIN_SETTINGS, (780, -320), (700, 500)),
        "checkpoint": _checkpoint((0, 290)),
        "pictures": Node("LoadImageTextDataSetFromFolder", (0, 560), (320, 110), room=40),
        "size": Node("ImageScale", (380, 1110), (240, 150), _SCALE, "Picture size", room=60),
        "captions": Node("CLIPTextEncode", (780, 380), (240, 100), title="Captions", room=30),
        "latents": Node("VAEEncode", (780, 570), (240, 60), room=20),
        "wanted": Node(
            "CLIPTextEncode", (380, 900), (240, 110), {"text": "my style, a ship on the sea"}, "Sample caption", room=40
        ),
        "samples": Node("SaRATrainSamples", (780, 900), (260, 160), room=60),
        "train": Node("SaRATrain", (1120, 290), (420, 700), room=620),
        "save": Node("SaRASave", (1640, 290), (340, 340), {"filename_prefix": f"sara/{STYLE_FOLDER}"}, room=200),
        "plot": Node("LossGraphNode", (1640, 900), (340, 240), room=140),
    },
    links=[
        ("pictures", "images", "size", "image"),
        ("size", "IMAGE", "latents", "pixels"),
        ("checkpoint", "VAE", "latents", "vae"),
        ("checkpoint", "CLIP", "captions", "clip"),
        ("pictures", "texts", "captions", "text"),
        ("checkpoint", "MODEL", "train", "model"),
        ("latents", "LATENT", "train", "latents"),
        ("captions", "CONDITIONING", "train", "positive"),
        ("checkpoint", "CLIP", "wanted", "clip"),
        ("wanted", "CONDITIONING", "samples", "positive"),
        ("checkpoint", "VAE", "samples", "vae"),
        ("samples", "samples", "train", "samples"),
        ("train", "delta", "save", "delta"),
        ("train", "loss", "plot", "loss"),
    ],
    groups={
        "1. Choose a model and pictures": ["checkpoint", "pictures"],
        "2. Prepare them": ["size", "latents", "captions", "wanted", "samples"],
        "3. Train": ["train"],
        "4. Keep the delta": ["save", "plot"],
    },
)  # fmt: skip

SUBJECT = Graph(
    nodes={
        "help": _note(notes.SUBJECT_STEPS, (0, -380), (700, 560)),
        "settings help": _note(notes.SUBJECT_SETTINGS, (780, -380), (700, 560)),
        "checkpoint": _checkpoint((0, 290)),
        "pictures": Node("LoadImageTextDataSetFromFolder", (0, 560), (320, 110), title="Subject", room=40),
        "size": Node("ImageScale", (380, 1130), (240, 150), _SCALE, "Picture size", room=60),
        "captions": Node("CLIPTextEncode", (780, 380), (240, 100), title="Captions", room=30),
        "latents": Node("VAEEncode", (780, 570), (240, 60), room=20),
        "class pictures": Node(
            "LoadImageTextDataSetFromFolder", (0, 900), (320, 110), title="Others of its kind", room=40
        ),
        "class size": Node("ImageScale", (380, 1400), (240, 150), _SCALE, "Picture size (others)", room=60),
        "class captions": Node("CLIPTextEncode", (780, 1060), (240, 100), title="Captions (others)", room=30),
        "class latents": Node("VAEEncode", (780, 1250), (240, 60), room=20),
        "options": Node("SaRATrainOptions", (1120, 1320), (260, 420), room=240),
        "train": Node("SaRATrain", (1480, 290), (420, 700), {"steps": 800}, room=460),
        "save": Node("SaRASave", (2000, 290), (340, 340), {"filename_prefix": f"sara/{SUBJECT_FOLDER}"}, room=200),
        "plot": Node("LossGraphNode", (2000, 900), (340, 240), room=140),
    },
    links=[
        ("pictures", "images", "size", "image"),
        ("size", "IMAGE", "latents", "pixels"),
        ("checkpoint", "VAE", "latents", "vae"),
        ("checkpoint", "CLIP", "captions", "clip"),
        ("pictures", "texts", "captions", "text"),
        ("class pictures", "images", "class size", "image"),
        ("class size", "IMAGE", "class latents", "pixels"),
        ("checkpoint", "VAE", "class latents", "vae"),
        ("checkpoint", "CLIP", "class captions", "clip"),
        ("class pictures", "texts", "class captions", "text"),
        ("checkpoint", "MODEL", "train", "model"),
        ("latents", "LATENT", "train", "latents"),
        ("captions", "CONDITIONING", "train", "positive"),
        ("class latents", "LATENT", "train", "class_latents"),
        ("class captions", "CONDITIONING", "train", "class_positive"),
        ("options", "options", "train", "options"),
        ("train", "delta", "save", "delta"),
        ("train", "loss", "plot", "loss"),
    ],
    groups={
        "1. Choose a model and pictures": ["checkpoint", "pictures", "class pictures"],
        "2. Prepare them": ["size", "latents", "captions", "class size", "class latents", "class captions"],
        "3. Train": ["train"],
        "For those who want more": ["options"],
        "4. Keep the delta": ["save", "plot"],
    },
)  # fmt: skip

_PROMPT, _NEGATIVE = {"text": "my style, a ship on the sea"}, {"text": "text, watermark"}
_SQUARE = {"width": 512, "height": 512}
_SAMPLING = {
    "seed": 1, "control_after_generate": "fixed", "steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m",
    "scheduler": "karras",
}  # fmt: skip

USE = Graph(
    nodes={
        "help": _note(notes.USE_STEPS, (0, -240), (760, 420)),
        "compare help": _note(notes.COMPARE, (860, -240), (960, 420)),
        "checkpoint": _checkpoint((0, 900)),
        "delta": Node("SaRALoader", (400, 290), (360, 180), room=400),
        "prompt": Node("CLIPTextEncode", (400, 1140), (360, 100), _PROMPT, "Prompt", room=40),
        "negative": Node("CLIPTextEncode", (400, 1320), (360, 90), _NEGATIVE, "Negative prompt", room=40),
        "noise": Node("EmptyLatentImage", (400, 1490), (360, 110), _SQUARE, "Picture size", room=40),
        "seed": Node("PrimitiveInt", (400, 1680), (360, 80), {"value": 1}, "Seed", room=40),
        "sampler": Node("KSampler", (860, 290), (300, 270), _SAMPLING, room=100),
        "decoder": Node("VAEDecode", (1200, 740), (200, 60), room=20),
        "picture": Node("SaveImage", (1480, 290), (340, 300), {"filename_prefix": STYLE_FOLDER}, room=160),
        "plain sampler": Node("KSampler", (860, 1050), (300, 270), _SAMPLING, "KSampler (no delta)", room=100),
        "plain decoder": Node("VAEDecode", (1200, 920), (200, 60), room=20),
        "plain picture": Node("PreviewImage", (1480, 1050), (340, 300), title="Preview Image (no delta)", room=160),
    },
    links=[
        ("checkpoint", "MODEL", "delta", "model"),
        ("checkpoint", "CLIP", "prompt", "clip"),
        ("checkpoint", "CLIP", "negative", "clip"),
        ("delta", "MODEL", "sampler", "model"),
        ("prompt", "CONDITIONING", "sampler", "positive"),
        ("negative", "CONDITIONING", "sampler", "negative"),
        ("noise", "LATENT", "sampler", "latent_image"),
        ("seed", "INT", "sampler", "seed"),
        ("sampler", "LATENT", "decoder", "samples"),
        ("checkpoint", "VAE", "decoder", "vae"),
        ("decoder", "IMAGE", "picture", "images"),
        ("checkpoint", "MODEL", "plain sampler", "model"),
        ("prompt", "CONDITIONING", "plain sampler", "positive"),
        ("negative", "CONDITIONING", "plain sampler", "negative"),
        ("noise", "LATENT", "plain sampler", "latent_image"),
        ("seed", "INT", "plain sampler", "seed"),
        ("plain sampler", "LATENT", "plain decoder", "samples"),
        ("checkpoint", "VAE", "plain decoder", "vae"),
        ("plain decoder", "IMAGE", "plain picture", "images"),
    ],
    groups={
        "1. Choose the model and the delta": ["checkpoint", "delta"],
        "2. Say what to draw": ["prompt", "negative", "noise", "seed"],
        "3. With the delta": ["sampler", "decoder", "picture"],
        "The same without it": ["plain sampler", "plain decoder", "plain picture"],
    },
)  # fmt: skip

BAKE = Graph(
    nodes={
        "help": _note(notes.BAKE_STEPS, (0, -220), (800, 400)),
        "delta": Node("SaRALoader", (0, 290), (360, 180), room=400),
        "bake": Node("SaRABake", (440, 290), (360, 180), room=240),
    },
    links=[("delta", "delta", "bake", "delta")],
    groups={"1. Choose the delta": ["delta"], "2. Bake it into a checkpoint": ["bake"]},
)

MERGE = Graph(
    nodes={
        "help": _note(notes.MERGE_STEPS, (0, -250), (760, 430)),
        "checkpoint": _checkpoint((820, 620)),
        "first": Node("SaRALoader", (0, 290), (320, 180), title="First style", room=360),
        "second": Node("SaRALoader", (0, 900), (320, 180), title="Second style", room=360),
        "merge": Node("SaRAMerge", (400, 290), (340, 340), {"weights": "0.6, 0.6"}, room=340),
        "report": Node("PreviewAny", (820, 900), (340, 200), title="Report", room=160),
        "apply": Node("SaRAApply", (1220, 290), (280, 110), room=40),
        "prompt": Node("CLIPTextEncode", (1220, 830), (280, 110), _PROMPT, "Prompt", room=60),
        "negative": Node("CLIPTextEncode", (1220, 1040), (280, 100), _NEGATIVE, "Negative prompt", room=60),
        "noise": Node("EmptyLatentImage", (1220, 1240), (280, 120), _SQUARE, "Picture size", room=40),
        "sampler": Node("KSampler", (1580, 290), (300, 270), _SAMPLING, room=100),
        "decoder": Node("VAEDecode", (1580, 720), (300, 60), room=20),
        "picture": Node("SaveImage", (1960, 290), (340, 300), {"filename_prefix": "merged"}, room=160),
        "overlap": Node("PreviewImage", (820, 1340), (340, 300), title="Overlap", room=160),
    },
    links=[
        ("first", "delta", "merge", "deltas.delta_1"),
        ("second", "delta", "merge", "deltas.delta_2"),
        ("merge", "report", "report", "source"),
        ("merge", "picture", "overlap", "images"),
        ("merge", "delta", "apply", "delta"),
        ("checkpoint", "MODEL", "apply", "model"),
        ("checkpoint", "CLIP", "prompt", "clip"),
        ("checkpoint", "CLIP", "negative", "clip"),
        ("apply", "MODEL", "sampler", "model"),
        ("prompt", "CONDITIONING", "sampler", "positive"),
        ("negative", "CONDITIONING", "sampler", "negative"),
        ("noise", "LATENT", "sampler", "latent_image"),
        ("sampler", "LATENT", "decoder", "samples"),
        ("checkpoint", "VAE", "decoder", "vae"),
        ("decoder", "IMAGE", "picture", "images"),
    ],
    groups={
        "1. Choose the deltas": ["first", "second"],
        "2. Merge them": ["merge"],
        "3. Choose the model": ["checkpoint"],
        "What the merging did": ["report", "overlap"],
        "4. Say what to draw": ["apply", "prompt", "negative", "noise"],
        "5. Draw": ["sampler", "decoder", "picture"],
    },
)

INSPECT = Graph(
    nodes={
        "help": _note(notes.INSPECT_STEPS, (0, -220), (1180, 400)),
        "extract": Node("SaRAExtract", (0, 290), (340, 240), room=340),
        "report": Node("PreviewAny", (420, 920), (340, 240), title="How much it holds", room=160),
        "inspect": Node("SaRAInspect", (420, 440), (340, 240), room=130),
        "text": Node("PreviewAny", (840, 920), (340, 240), title="What it is", room=160),
        "save": Node("SaRASave", (840, 290), (340, 340), {"filename_prefix": "sara/extracted"}, room=200),
    },
    links=[
        ("extract", "report", "report", "source"),
        ("extract", "delta", "inspect", "delta"),
        ("inspect", "report", "text", "source"),
        ("extract", "delta", "save", "delta"),
    ],
    groups={
        "1. Extract a delta": ["extract"],
        "2. Look at it": ["inspect", "report"],
        "3. Keep it": ["save", "text"],
    },
)  # fmt: skip

CONVERT = Graph(
    nodes={
        "help": _note(notes.CONVERT_STEPS, (0, -200), (840, 380)),
        "convert": Node("SaRAConvert", (0, 290), (360, 300), room=240),
        "report": Node("PreviewAny", (440, 290), (400, 240), title="How near it is", room=160),
    },
    links=[("convert", "report", "report", "source")],
    groups={"1. Choose the file and its model": ["convert"], "2. How near it is": ["report"]},
)

# As the page's search knows them: by these names only.
TRAIN_A_STYLE = "Train a style, like LoRA training"
LEARN_A_SUBJECT = "Learn a subject, like LoRA training"
GRAPHS = {
    TRAIN_A_STYLE: TRAIN,
    LEARN_A_SUBJECT: SUBJECT,
    "Use a delta": USE,
    "Bake a delta": BAKE,
    "Merge two styles": MERGE,
    "Inspect and extract": INSPECT,
    "Convert a LoRA": CONVERT,
}
