"""The two example workflows that train. Both draw a picture at the end, so that what was learned is seen at once."""

from typing import Any

from . import notes
from .graph import NEGATIVE, PROMPT, SAMPLING, Graph, Node, checkpoint, note
from .notes import STYLE_FOLDER, SUBJECT_FOLDER

Links = list[tuple[str, str, str, str]]

# How many others of its kind the model draws, and how many of them at once.
OTHERS, AT_ONCE = 48, 4

# What both have in common: above, the wires to the picture at the end; below them, the training.
_FROM_CHECKPOINT: Links = [
    ("checkpoint", "VAE", "pictures", "vae"),
    ("checkpoint", "CLIP", "pictures", "clip"),
    ("trigger", "STRING", "pictures", "trigger"),
    ("size", "INT", "pictures", "resolution"),
    ("trigger", "STRING", "sentence", "string_a"),
    ("checkpoint", "MODEL", "train", "model"),
    ("pictures", "latents", "train", "latents"),
    ("pictures", "conditioning", "train", "positive"),
    ("train", "delta", "save", "delta"),
    ("trigger", "STRING", "save", "trigger_phrase"),
    ("train", "loss", "plot", "loss"),
]
_PICTURE_AT_THE_END: Links = [
    ("checkpoint", "MODEL", "apply", "model"),
    ("train", "delta", "apply", "delta"),
    ("checkpoint", "CLIP", "prompt", "clip"),
    ("sentence", "STRING", "prompt", "text"),
    ("checkpoint", "CLIP", "negative", "clip"),
    ("size", "INT", "noise", "width"),
    ("size", "INT", "noise", "height"),
    ("apply", "MODEL", "sampler", "model"),
    ("prompt", "CONDITIONING", "sampler", "positive"),
    ("negative", "CONDITIONING", "sampler", "negative"),
    ("noise", "LATENT", "sampler", "latent_image"),
    ("sampler", "LATENT", "decoder", "samples"),
    ("checkpoint", "VAE", "decoder", "vae"),
    ("decoder", "IMAGE", "picture", "images"),
]
_GROUPS = {
    "1. Say what to learn": ["checkpoint", "trigger", "sentence", "size"],
    "2. Choose pictures": ["pictures"],
    "3. Train": ["train"],
    "4. Keep the delta": ["save", "plot"],
    "5. A picture with it": ["apply", "prompt", "negative", "noise", "sampler", "decoder", "picture"],
}


def _choices(trigger: str, to_draw: str, below: int) -> dict[str, Node]:
    return {
        "checkpoint": checkpoint((0, 0)),
        "trigger": Node("PrimitiveString", (0, 200), (320, 60), {"value": trigger}, "Trigger word", room=40),
        "sentence": Node(
            "StringConcatenate", (0, 360), (320, 180), {**PROMPT, "string_b": to_draw}, "What to draw", room=100
        ),
        "size": Node("PrimitiveInt", (0, 700), (320, 80), {"value": 512}, "Picture size", room=40),
        "pictures": Node("SaRADataset", (600, below), (460, 820), room=260),
    }  # fmt: skip


def _training(prefix: str, **settings: Any) -> dict[str, Node]:
    return {
        "train": Node("SaRATrain", (1500, 1000), (440, 980), settings, room=340),
        "save": Node("SaRASave", (2080, 810), (340, 340), {"filename_prefix": f"sara/{prefix}"}, room=200),
        "plot": Node("LossGraphNode", (2080, 1420), (340, 240), room=140),
    }


def _drawing(prefix: str) -> dict[str, Node]:
    return {
        "apply": Node("SaRAApply", (2080, 60), (280, 130), room=40),
        "prompt": Node("CLIPTextEncode", (2080, 270), (280, 60), title="Prompt", room=50),
        "negative": Node("CLIPTextEncode", (2080, 420), (280, 90), NEGATIVE, "Negative prompt", room=30),
        "noise": Node("EmptyLatentImage", (2080, 580), (280, 110), room=20),
        "sampler": Node("KSampler", (2480, 60), (300, 270), SAMPLING, room=100),
        "decoder": Node("VAEDecode", (2840, -60), (200, 60), room=20),
        "picture": Node("SaveImage", (3120, 0), (340, 300), {"filename_prefix": prefix}, room=160),
    }


TRAIN = Graph(
    nodes={
        "help": note(notes.TRAIN_STEPS, (-760, 0), (700, 500)),
        "settings help": note(notes.TRAIN_SETTINGS, (-760, 580), (700, 520)),
        **_choices("my style", "a ship on the sea", 1410),
        "wanted": Node("CLIPTextEncode", (600, 1190), (240, 60), title="Sample caption", room=60),
        "samples": Node("SaRATrainSamples", (900, 1060), (260, 160), room=60),
        **_training(STYLE_FOLDER),
        **_drawing(STYLE_FOLDER),
    },
    links=[
        *_FROM_CHECKPOINT,
        ("checkpoint", "CLIP", "wanted", "clip"),
        ("sentence", "STRING", "wanted", "text"),
        ("wanted", "CONDITIONING", "samples", "positive"),
        ("checkpoint", "VAE", "samples", "vae"),
        ("samples", "samples", "train", "samples"),
        *_PICTURE_AT_THE_END,
    ],
    groups={**_GROUPS, "What it draws while it trains": ["wanted", "samples"]},
)

SUBJECT = Graph(
    nodes={
        "help": note(notes.SUBJECT_STEPS, (-760, 0), (700, 560)),
        "settings help": note(notes.SUBJECT_SETTINGS, (-760, 640), (700, 560)),
        **_choices("a photo of sks dog", "on a beach", 2300),
        "kind": Node("CLIPTextEncode", (600, 1520), (260, 110), {"text": "a photo of a dog"}, "Its kind", room=40),
        "kind negative": Node("CLIPTextEncode", (600, 1720), (260, 90), NEGATIVE, "Negative prompt (others)", room=40),
        "kind noise": Node(
            "EmptyLatentImage", (600, 1900), (260, 110), {"batch_size": OTHERS}, "How many others", room=30
        ),
        "kind batches": Node("RebatchLatents", (600, 2100), (260, 60), {"batch_size": AT_ONCE}, "At once", room=40),
        "kind sampler": Node("KSampler", (900, 1000), (260, 270), SAMPLING, "Draw others of its kind", room=40),
        "options": Node("SaRATrainOptions", (950, 1560), (250, 420), room=180),
        **_training(SUBJECT_FOLDER, steps=800),
        **_drawing(SUBJECT_FOLDER),
    },
    links=[
        *_FROM_CHECKPOINT,
        ("size", "INT", "kind noise", "width"),
        ("size", "INT", "kind noise", "height"),
        ("kind noise", "LATENT", "kind batches", "latents"),
        ("checkpoint", "CLIP", "kind", "clip"),
        ("checkpoint", "CLIP", "kind negative", "clip"),
        ("checkpoint", "MODEL", "kind sampler", "model"),
        ("kind", "CONDITIONING", "kind sampler", "positive"),
        ("kind negative", "CONDITIONING", "kind sampler", "negative"),
        ("kind batches", "LATENT", "kind sampler", "latent_image"),
        ("kind sampler", "LATENT", "train", "class_latents"),
        ("kind", "CONDITIONING", "train", "class_positive"),
        ("options", "options", "train", "options"),
        *_PICTURE_AT_THE_END,
    ],
    groups={
        **_GROUPS,
        "Others of its kind, drawn by the model": [
            "kind", "kind negative", "kind noise", "kind batches", "kind sampler",
        ],
        "For those who want more": ["options"],
    },
)  # fmt: skip
