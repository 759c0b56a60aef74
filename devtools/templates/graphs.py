"""The example workflows: nodes, widgets, links and notes. What is not said is left at the node's default."""

from typing import Any, NamedTuple

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
# For the page's offer to download a missing model, as in ComfyUI's own templates.
CHECKPOINT_SOURCE = {
    "name": CHECKPOINT,
    "url": f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}?download=true",
    "directory": "checkpoints",
}
STYLE_FOLDER = "my_style"
SUBJECT_FOLDER, CLASS_FOLDER = "my_dog", "dogs"
DELTA, SECOND_DELTA = f"{STYLE_FOLDER}_00001_.safetensors", "other_style_00001_.safetensors"
TUNED = "tuned.safetensors"


class Node(NamedTuple):
    """at: left and top; size: width and height, both without the title bar; properties: what a saved node carries
    beside its widgets."""

    type: str
    at: tuple[int, int]
    size: tuple[int, int]
    widgets: dict[str, Any] = {}
    title: str | None = None
    properties: dict[str, Any] = {}


class Graph(NamedTuple):
    """links: (from node, output, to node, input); groups: title → nodes; nodes are named by the keys of ``nodes``."""

    nodes: dict[str, Node]
    links: list[tuple[str, str, str, str]]
    groups: dict[str, list[str]]


def _note(text: str, at: tuple[int, int], size: tuple[int, int]) -> Node:
    return Node("MarkdownNote", at, size, {"": text}, "Note")


def _checkpoint(at: tuple[int, int]) -> Node:
    widgets = {"ckpt_name": CHECKPOINT}
    return Node("CheckpointLoaderSimple", at, (320, 110), widgets, properties={"models": [CHECKPOINT_SOURCE]})


TRAIN_HELP = f"""## Train a style

1. **Load Checkpoint**: choose the model to train. Its file is not changed.
2. In ComfyUI's folder *input*, make a folder *{STYLE_FOLDER}*. Put your pictures in it and, beside each, its caption \
in a text file of the same name: *cat.png* and *cat.txt*.
3. Begin every caption with the same words, like *my style, a cat on a chair*. They call the style up later.
4. Press the **R** key, then choose the folder in **Load Image-Text**.
5. Press **Run**. The delta is saved in *output/sara*; the template *Use a delta* draws with it.
"""

SETTINGS_HELP = """**Style too weak?** More *steps* first, then a higher *density* (up to about 6).

**Style too strong or pictures broken?** Draw with a lower strength, or train with fewer *steps*.

**Out of memory?** Keep *batch_size* at 1 and *gradient_checkpointing* on; make the pictures smaller.

**Not Stable Diffusion 1.5?** Set the picture size that your model is made for, for SDXL 1024.

**Cancel** stops at once and keeps what was trained in *output/sara*. To go on, press **R**, choose the snapshot under \
*resume* and press **Run**.
"""

SUBJECT_HELP = f"""## Learn a subject

1. **Load Checkpoint**: choose the model to train. Its file is not changed.
2. In ComfyUI's folder *input*, make a folder *{SUBJECT_FOLDER}* with 4 to 20 pictures of your subject and, beside \
each, its caption in a text file of the same name: *1.png* and *1.txt*. Name the subject by a rare word and its kind: \
*a photo of sks dog on a beach*.
3. Make a folder *{CLASS_FOLDER}* with pictures of **other** things of that kind, captioned without the rare word: *a \
photo of a dog*. You can draw some 50 to 200 with the model itself. They keep it from making every dog yours.
4. Press the **R** key, then choose the folders in **Load Image-Text**.
5. Press **Run**. The delta is saved in *output/sara*; the template *Use a delta* draws with it.
"""

SUBJECT_SETTINGS_HELP = """**The subject is not learned?** More *steps*, then a higher *density*.

**Every dog looks like yours?** More class pictures, or a higher *prior_weight*.

**No class pictures at hand?** Delete the lower row: then it trains on the subject alone.

**Out of memory?** Keep *batch_size* at 1 and *gradient_checkpointing* on; make the pictures smaller.

**Stopped?** Press **R**, choose the snapshot under *resume*, press **Run** again: it goes on exactly.
"""

USE_HELP = """## Use a delta

1. **Load Checkpoint**: choose the model that the delta was trained on.
2. **SaRA Loader**: choose the delta. Press the **R** key if a new one is not in the list.
3. **Prompt**: begin it with the words that the captions began with.
4. Press **Run**.

Delta files are in *output/sara* and *models/sara*.

*strength* 1 is what was trained, 0 is the model alone. Try 0.5 to 1.5.

The stock **Load LoRA** node loads the same files.
"""

COMPARE_HELP = """The lower row draws the same picture **without** the delta, to compare.

To save the time, select its three nodes and press **Ctrl+M**.

A picture that is almost the same in both rows? The prompt may lack the words of the captions, or the delta needs more \
training.
"""

BAKE_HELP = """## Bake a delta

Writes a **new** checkpoint with the delta in it. Any program that reads checkpoints can use it, without SaRA.

1. **SaRA Loader**: choose the delta. It needs no model here.
2. **SaRA Bake**: choose the checkpoint that the delta was trained on. Its file is not changed.
3. Press **Run**. The new checkpoint is in *output/checkpoints* and, after pressing the **R** key, in the list of \
**Load Checkpoint**. It is as large as the old one.

Change *strength* in **SaRA Bake** to bake in more or less of the delta. (The loader's own *strength* only counts for \
a model connected to it.)
"""

_SCALE = {"upscale_method": "lanczos", "width": 512, "height": 512, "crop": "center"}

MERGE_HELP = """## Merge two styles

1. **Load Checkpoint**: choose the model that both deltas were trained on.
2. **SaRA Loader**, twice: choose the deltas.
3. **SaRA Merge**: *weights* says how much of each, like *0.6, 0.6*. A new input appears for a third delta.
4. **Prompt**: use the words of both.
5. Press **Run**.

*sum* adds the changes. With deltas that work against each other (the report says so), try *ties*. Connect \
**SaRA Save** to keep the merged delta, or **SaRA Bake** to put it into a checkpoint.
"""

INSPECT_HELP = """## Inspect and extract

Makes a delta of a fine-tuned checkpoint: its largest differences from its base.

1. **SaRA Extract**: choose the base and the tuned checkpoint. Neither file is changed.
2. *density* is the part that is kept, in per cent. The report says how much of the difference it holds.
3. Press **Run**. **SaRA Inspect** shows what the delta is and where in the model it lies, and **SaRA Save** keeps it \
in *output/sara*.

Connect a model to **SaRA Inspect** to choose a *threshold* for training: how many weights are below it, and what \
they are worth.
"""

TRAIN = Graph(
    nodes={
        "help": _note(TRAIN_HELP, (0, -30), (640, 210)),
        "settings help": _note(SETTINGS_HELP, (680, -30), (640, 210)),
        "checkpoint": _checkpoint((0, 290)),
        "pictures": Node("LoadImageTextDataSetFromFolder", (0, 510), (320, 110), {"folder": STYLE_FOLDER}),
        "size": Node("ImageScale", (380, 430), (240, 150), _SCALE, "Picture size"),
        "latents": Node("VAEEncode", (680, 290), (240, 60)),
        "captions": Node("CLIPTextEncode", (680, 510), (240, 110), title="Captions"),
        "train": Node("SaRATrain", (980, 290), (320, 650)),
        "save": Node("SaRASave", (1360, 290), (320, 340), {"filename_prefix": f"sara/{STYLE_FOLDER}"}),
        "plot": Node("LossGraphNode", (1360, 710), (320, 240)),
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
        ("train", "delta", "save", "delta"),
        ("train", "loss", "plot", "loss"),
    ],
    groups={
        "1. Choose a model and pictures": ["checkpoint", "pictures"],
        "2. Prepare them": ["size", "latents", "captions"],
        "3. Train": ["train"],
        "4. Keep the delta": ["save", "plot"],
    },
)  # fmt: skip

SUBJECT = Graph(
    nodes={
        "help": _note(SUBJECT_HELP, (0, -90), (640, 270)),
        "settings help": _note(SUBJECT_SETTINGS_HELP, (680, -90), (640, 270)),
        "checkpoint": _checkpoint((0, 290)),
        "pictures": Node(
            "LoadImageTextDataSetFromFolder", (0, 510), (320, 110), {"folder": SUBJECT_FOLDER}, "Subject",
        ),
        "size": Node("ImageScale", (380, 290), (240, 150), _SCALE, "Picture size"),
        "latents": Node("VAEEncode", (680, 290), (240, 60)),
        "captions": Node("CLIPTextEncode", (680, 430), (240, 110), title="Captions"),
        "class pictures": Node(
            "LoadImageTextDataSetFromFolder", (0, 740), (320, 110), {"folder": CLASS_FOLDER}, "Others of its kind",
        ),
        "class size": Node("ImageScale", (380, 740), (240, 150), _SCALE, "Picture size (others)"),
        "class latents": Node("VAEEncode", (680, 740), (240, 60)),
        "class captions": Node("CLIPTextEncode", (680, 880), (240, 110), title="Captions (others)"),
        "train": Node("SaRATrain", (980, 290), (320, 690), {"steps": 800}),
        "save": Node("SaRASave", (1360, 290), (320, 340), {"filename_prefix": f"sara/{SUBJECT_FOLDER}"}),
        "plot": Node("LossGraphNode", (1360, 710), (320, 240)),
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
        ("train", "delta", "save", "delta"),
        ("train", "loss", "plot", "loss"),
    ],
    groups={
        "1. Choose a model and pictures": ["checkpoint", "pictures"],
        "2. Prepare them": ["size", "latents", "captions"],
        "Others of its kind": ["class pictures", "class size", "class latents", "class captions"],
        "3. Train": ["train"],
        "4. Keep the delta": ["save", "plot"],
    },
)  # fmt: skip

_SAMPLING = {
    "seed": 1, "control_after_generate": "fixed", "steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m",
    "scheduler": "karras",
}  # fmt: skip

USE = Graph(
    nodes={
        "help": _note(USE_HELP, (0, -30), (700, 210)),
        "checkpoint": _checkpoint((0, 290)),
        "delta": Node("SaRALoader", (380, 290), (320, 140), {"sara_name": DELTA}),
        "prompt": Node("CLIPTextEncode", (380, 520), (320, 110), {"text": "my style, a ship on the sea"}, "Prompt"),
        "negative": Node("CLIPTextEncode", (380, 690), (320, 100), {"text": "text, watermark"}, "Negative prompt"),
        "noise": Node("EmptyLatentImage", (380, 850), (320, 120), {"width": 512, "height": 512}, "Picture size"),
        "sampler": Node("KSampler", (780, 290), (300, 270), _SAMPLING),
        "decoder": Node("VAEDecode", (1120, 290), (230, 60)),
        "picture": Node("SaveImage", (1390, 290), (300, 300), {"filename_prefix": STYLE_FOLDER}),
        "plain sampler": Node("KSampler", (780, 710), (300, 270), _SAMPLING, "KSampler (no delta)"),
        "plain decoder": Node("VAEDecode", (1120, 710), (230, 60)),
        "plain picture": Node("PreviewImage", (1390, 710), (300, 300), title="Preview Image (no delta)"),
        "compare help": _note(COMPARE_HELP, (780, -30), (520, 210)),
    },
    links=[
        ("checkpoint", "MODEL", "delta", "model"),
        ("checkpoint", "CLIP", "prompt", "clip"),
        ("checkpoint", "CLIP", "negative", "clip"),
        ("delta", "MODEL", "sampler", "model"),
        ("prompt", "CONDITIONING", "sampler", "positive"),
        ("negative", "CONDITIONING", "sampler", "negative"),
        ("noise", "LATENT", "sampler", "latent_image"),
        ("sampler", "LATENT", "decoder", "samples"),
        ("checkpoint", "VAE", "decoder", "vae"),
        ("decoder", "IMAGE", "picture", "images"),
        ("checkpoint", "MODEL", "plain sampler", "model"),
        ("prompt", "CONDITIONING", "plain sampler", "positive"),
        ("negative", "CONDITIONING", "plain sampler", "negative"),
        ("noise", "LATENT", "plain sampler", "latent_image"),
        ("plain sampler", "LATENT", "plain decoder", "samples"),
        ("checkpoint", "VAE", "plain decoder", "vae"),
        ("plain decoder", "IMAGE", "plain picture", "images"),
    ],
    groups={
        "1. Choose the model and the delta": ["checkpoint", "delta"],
        "2. Say what to draw": ["prompt", "negative", "noise"],
        "3. With the delta": ["sampler", "decoder", "picture"],
        "The same without it": ["plain sampler", "plain decoder", "plain picture"],
    },
)

BAKE = Graph(
    nodes={
        "help": _note(BAKE_HELP, (0, -30), (760, 210)),
        "delta": Node("SaRALoader", (0, 290), (320, 140), {"sara_name": DELTA}),
        "bake": Node(
            "SaRABake", (400, 290), (360, 150),
            {"ckpt_name": CHECKPOINT, "filename_prefix": f"checkpoints/{STYLE_FOLDER}"},
            properties={"models": [CHECKPOINT_SOURCE]},
        ),
    },
    links=[("delta", "delta", "bake", "delta")],
    groups={"1. Choose the delta": ["delta"], "2. Bake it into a checkpoint": ["bake"]},
)  # fmt: skip

MERGE = Graph(
    nodes={
        "help": _note(MERGE_HELP, (0, -90), (700, 270)),
        "checkpoint": _checkpoint((0, 290)),
        "first": Node("SaRALoader", (0, 510), (320, 140), {"sara_name": DELTA}, "First style"),
        "second": Node("SaRALoader", (0, 720), (320, 140), {"sara_name": SECOND_DELTA}, "Second style"),
        "merge": Node("SaRAMerge", (380, 290), (340, 420), {"weights": "0.6, 0.6"}),
        "apply": Node("SaRAApply", (780, 290), (270, 110)),
        "prompt": Node("CLIPTextEncode", (780, 460), (270, 110), {"text": "my style, a ship on the sea"}, "Prompt"),
        "negative": Node("CLIPTextEncode", (780, 620), (270, 100), {"text": "text, watermark"}, "Negative prompt"),
        "noise": Node("EmptyLatentImage", (780, 770), (270, 120), {"width": 512, "height": 512}, "Picture size"),
        "sampler": Node("KSampler", (1110, 290), (300, 270), _SAMPLING),
        "decoder": Node("VAEDecode", (1110, 620), (300, 60)),
        "picture": Node("SaveImage", (1450, 290), (300, 300), {"filename_prefix": "merged"}),
        "report": Node("PreviewAny", (380, 790), (340, 200), title="Report"),
        "overlap": Node("PreviewImage", (1450, 650), (300, 300), title="Overlap"),
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
        "1. Choose the model and the deltas": ["checkpoint", "first", "second"],
        "2. Merge them": ["merge", "report"],
        "3. Say what to draw": ["apply", "prompt", "negative", "noise"],
        "4. Draw": ["sampler", "decoder", "picture", "overlap"],
    },
)

INSPECT = Graph(
    nodes={
        "help": _note(INSPECT_HELP, (0, -90), (700, 270)),
        "extract": Node(
            "SaRAExtract", (0, 290), (340, 220),
            {"base_name": CHECKPOINT, "tuned_name": TUNED},
            properties={"models": [CHECKPOINT_SOURCE]},
        ),
        "report": Node("PreviewAny", (0, 590), (340, 200), title="How much it holds"),
        "inspect": Node("SaRAInspect", (420, 290), (340, 340)),
        "text": Node("PreviewAny", (420, 710), (340, 200), title="What it is"),
        "save": Node("SaRASave", (840, 290), (320, 340), {"filename_prefix": "sara/extracted"}),
    },
    links=[
        ("extract", "report", "report", "source"),
        ("extract", "delta", "inspect", "delta"),
        ("inspect", "report", "text", "source"),
        ("extract", "delta", "save", "delta"),
    ],
    groups={
        "1. Extract a delta": ["extract", "report"],
        "2. Look at it": ["inspect", "text"],
        "3. Keep it": ["save"],
    },
)  # fmt: skip

GRAPHS = {
    "Train a style": TRAIN,
    "Learn a subject": SUBJECT,
    "Use a delta": USE,
    "Bake a delta": BAKE,
    "Merge two styles": MERGE,
    "Inspect and extract": INSPECT,
}
