"""The example workflows: nodes, widgets, links and notes. What is not said is left at the node's default.

Files that only a user can have (a checkpoint, a folder of pictures, a delta) are not said, nor saved: the page takes
the first that is there, and nothing is missing as long as there is one of its kind.
"""

from . import notes
from .graph import NEGATIVE, PROMPT, SAMPLING, SQUARE, Graph, Node, checkpoint, note
from .notes import STYLE_FOLDER
from .training_graphs import SUBJECT, TRAIN

# Saved without the values of their widgets, all of which are at their defaults.
FILE_CHOOSERS = {
    "CheckpointLoaderSimple", "SaRADataset", "SaRALoader", "SaRABake", "SaRAExtract", "SaRAConvert",
}  # fmt: skip

USE = Graph(
    nodes={
        "help": note(notes.USE_STEPS, (0, -240), (760, 420)),
        "compare help": note(notes.COMPARE, (860, -240), (1080, 420)),
        "checkpoint": checkpoint((0, 900)),
        "delta": Node("SaRALoader", (400, 290), (360, 214), room=400),
        "sentence": Node("StringConcatenate", (400, 1140), (360, 180), PROMPT, "Prompt", room=100),
        "prompt": Node("CLIPTextEncode", (400, 1480), (360, 60), title="Prompt with its trigger", room=60),
        "negative": Node("CLIPTextEncode", (400, 1660), (360, 90), NEGATIVE, "Negative prompt", room=40),
        "noise": Node("EmptyLatentImage", (400, 1850), (360, 110), SQUARE, "Picture size", room=40),
        "seed": Node("PrimitiveInt", (400, 2060), (360, 80), {"value": 1}, "Seed", room=40),
        "sampler": Node("KSampler", (980, 290), (300, 270), SAMPLING, room=100),
        "decoder": Node("VAEDecode", (1320, 740), (200, 60), room=20),
        "picture": Node("SaveImage", (1600, 290), (340, 300), {"filename_prefix": STYLE_FOLDER}, room=160),
        "plain sampler": Node("KSampler", (980, 1050), (300, 270), SAMPLING, "KSampler (no delta)", room=100),
        "plain decoder": Node("VAEDecode", (1320, 920), (200, 60), room=20),
        "plain picture": Node("PreviewImage", (1600, 1050), (340, 300), title="Preview Image (no delta)", room=160),
    },
    links=[
        ("checkpoint", "MODEL", "delta", "model"),
        ("checkpoint", "CLIP", "prompt", "clip"),
        ("checkpoint", "CLIP", "negative", "clip"),
        ("delta", "trigger", "sentence", "string_a"),
        ("sentence", "STRING", "prompt", "text"),
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
        "2. Say what to draw": ["sentence", "prompt", "negative", "noise", "seed"],
        "3. With the delta": ["sampler", "decoder", "picture"],
        "The same without it": ["plain sampler", "plain decoder", "plain picture"],
    },
)  # fmt: skip

_STRENGTHS = {"no strength": 0.0, "half": 0.5, "whole": 1.0, "more": 1.5}

COMPARE = Graph(
    nodes={
        "help": note(notes.COMPARE_STEPS, (0, -220), (1400, 400)),
        "checkpoint": checkpoint((0, 290)),
        "delta": Node("SaRALoader", (0, 520), (360, 214), room=400),
        **{
            key: Node("PrimitiveFloat", (0, 1180 + 140 * row), (360, 60), {"value": strength}, title)
            for row, ((key, strength), title) in enumerate(zip(_STRENGTHS.items(), notes.STRENGTHS))
        },
        "sentence": Node("StringConcatenate", (480, 700), (300, 180), PROMPT, "Prompt", room=100),
        "prompt": Node("CLIPTextEncode", (480, 1040), (300, 60), title="Prompt with its trigger", room=60),
        "negative": Node("CLIPTextEncode", (480, 1220), (300, 90), NEGATIVE, "Negative prompt", room=40),
        "noise": Node("EmptyLatentImage", (480, 1410), (300, 110), SQUARE, "Picture size", room=40),
        "strengths": Node("CreateList", (480, 1640), (300, 140), title="One after the other", room=20),
        "apply": Node("SaRAApply", (960, 440), (280, 130), room=60),
        "sampler": Node("KSampler", (1360, 700), (300, 270), SAMPLING, room=100),
        "decoder": Node("VAEDecode", (1760, 290), (200, 60), room=20),
        "picture": Node("SaveImage", (2040, 290), (500, 500), {"filename_prefix": "strengths"}, room=160),
    },
    links=[
        ("checkpoint", "MODEL", "apply", "model"),
        ("delta", "delta", "apply", "delta"),
        *((key, "FLOAT", "strengths", f"inputs.input{row}") for row, key in enumerate(_STRENGTHS)),
        ("strengths", "list", "apply", "strength"),
        ("delta", "trigger", "sentence", "string_a"),
        ("sentence", "STRING", "prompt", "text"),
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
        "1. Choose the model, the delta and strengths": ["checkpoint", "delta", *_STRENGTHS],
        "2. Say what to draw": ["sentence", "prompt", "negative", "noise", "strengths"],
        "3. Draw": ["apply", "sampler", "decoder", "picture"],
    },
)  # fmt: skip

BAKE = Graph(
    nodes={
        "help": note(notes.BAKE_STEPS, (0, -220), (800, 400)),
        "delta": Node("SaRALoader", (0, 290), (360, 214), room=400),
        "bake": Node("SaRABake", (440, 290), (360, 180), room=240),
    },
    links=[("delta", "delta", "bake", "delta")],
    groups={"1. Choose the delta": ["delta"], "2. Bake it into a checkpoint": ["bake"]},
)

MERGE = Graph(
    nodes={
        "help": note(notes.MERGE_STEPS, (0, -250), (760, 430)),
        "checkpoint": checkpoint((820, 620)),
        "first": Node("SaRALoader", (0, 290), (340, 214), title="First style", room=360),
        "second": Node("SaRALoader", (0, 900), (340, 214), title="Second style", room=360),
        "merge": Node("SaRAMerge", (400, 290), (340, 340), {"weights": "0.6, 0.6"}, room=340),
        "report": Node("PreviewAny", (820, 900), (340, 200), title="Report", room=160),
        "apply": Node("SaRAApply", (1220, 290), (280, 110), room=40),
        "prompt": Node(
            "CLIPTextEncode", (1220, 830), (280, 110), {"text": "my style, a ship on the sea"}, "Prompt", room=60
        ),
        "negative": Node("CLIPTextEncode", (1220, 1040), (280, 100), NEGATIVE, "Negative prompt", room=60),
        "noise": Node("EmptyLatentImage", (1220, 1240), (280, 120), SQUARE, "Picture size", room=40),
        "sampler": Node("KSampler", (1580, 290), (300, 270), SAMPLING, room=100),
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
        "help": note(notes.INSPECT_STEPS, (0, -220), (1180, 400)),
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
        "help": note(notes.CONVERT_STEPS, (0, -200), (840, 380)),
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
    "Compare strengths": COMPARE,
    "Bake a delta": BAKE,
    "Merge two styles": MERGE,
    "Inspect and extract": INSPECT,
    "Convert a LoRA": CONVERT,
}
