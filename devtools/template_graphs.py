"""The three example workflows: nodes, widgets, links and notes. What is not said is left at the node's default."""

from typing import Any, NamedTuple

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
# For the page's offer to download a missing model, as in ComfyUI's own templates.
CHECKPOINT_SOURCE = {
    "name": CHECKPOINT,
    "url": f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}?download=true",
    "directory": "checkpoints",
}
STYLE_FOLDER = "my_style"
DELTA = f"{STYLE_FOLDER}_00001_.safetensors"


class Node(NamedTuple):
    """at: left and top; size: width and height, or None for the page's own; properties: what a saved node carries
    beside its widgets."""

    type: str
    at: tuple[int, int]
    widgets: dict[str, Any] = {}
    title: str | None = None
    size: tuple[int, int] | None = None
    properties: dict[str, Any] = {}


class Graph(NamedTuple):
    """links: (from node, output, to node, input); groups: title → nodes; nodes are named by the keys of ``nodes``."""

    nodes: dict[str, Node]
    links: list[tuple[str, str, str, str]]
    groups: dict[str, list[str]]


def _note(text: str, at: tuple[int, int], size: tuple[int, int]) -> Node:
    return Node("MarkdownNote", at, {"": text}, "Note", size)


def _checkpoint(at: tuple[int, int]) -> Node:
    widgets = {"ckpt_name": CHECKPOINT}
    return Node("CheckpointLoaderSimple", at, widgets, size=(340, 100), properties={"models": [CHECKPOINT_SOURCE]})


TRAIN_HELP = f"""## Train a style

1. **Load Checkpoint**: choose the model to train. Its file is not changed.
2. In ComfyUI's folder `input`, make a folder `{STYLE_FOLDER}`. Put your pictures in it and, beside each, its caption in \
a text file of the same name: `cat.png` and `cat.txt`.
3. Begin every caption with the same words, like `my style, a cat on a chair`. They call the style up later.
4. Press the **R** key, then choose the folder in **Load Image-Text**.
5. Press **Run**. The delta is saved in `output/sara`; the template *Use a delta* draws with it.
"""

SETTINGS_HELP = """**Style too weak?** More `steps` first, then a higher `density` (up to about 6).

**Style too strong or pictures broken?** Draw with a lower strength, or train with fewer `steps`.

**Out of memory?** Keep `batch_size` at 1 and `gradient_checkpointing` on; make the pictures smaller.

**Not Stable Diffusion 1.5?** Set the picture size that your model is made for, for SDXL 1024.

**Cancel** stops at once; what was trained until then is kept in `output/sara`.
"""

USE_HELP = """## Use a delta

1. **Load Checkpoint**: choose the model that the delta was trained on.
2. **SaRA Loader**: choose the delta. Press the **R** key if a new one is not in the list.
3. **Prompt**: begin it with the words that the captions began with.
4. Press **Run**.

Delta files are in `output/sara` and `models/sara`.

`strength` 1 is what was trained, 0 is the model alone. Try 0.5 to 1.5.

The stock **Load LoRA** node loads the same files.
"""

COMPARE_HELP = """Draws the same picture **without** the delta, to compare.

To save the time, select this group's nodes and press **Ctrl+M**.
"""

BAKE_HELP = """## Bake a delta

Writes a **new** checkpoint with the delta in it. Any program that reads checkpoints can use it, without SaRA.

1. **SaRA Loader**: choose the delta. It needs no model here.
2. **SaRA Bake**: choose the checkpoint that the delta was trained on. Its file is not changed.
3. Press **Run**. The new checkpoint is in `output/checkpoints` and, after pressing the **R** key, in the list of \
**Load Checkpoint**. It is as large as the old one.

Change `strength` in **SaRA Bake** to bake in more or less of the delta. (The loader's own `strength` only counts for \
a model connected to it.)
"""

TRAIN = Graph(
    nodes={
        "help": _note(TRAIN_HELP, (-440, 0), (380, 430)),
        "checkpoint": _checkpoint((0, 0)),
        "pictures": Node(
            "LoadImageTextDataSetFromFolder", (0, 230), {"folder": STYLE_FOLDER}, size=(340, 90),
        ),
        "size": Node(
            "ImageScale", (440, 0),
            {"upscale_method": "lanczos", "width": 512, "height": 512, "crop": "center"},
            "Picture size", (300, 140),
        ),
        "latents": Node("VAEEncode", (440, 230), size=(300, 60)),
        "captions": Node("CLIPTextEncode", (440, 370), title="Captions", size=(300, 110)),
        "train": Node("SaRATrain", (840, 0), {"control_after_generate": "fixed"}, size=(340, 460)),
        "settings help": _note(SETTINGS_HELP, (840, 570), (340, 330)),
        "save": Node("SaRASave", (1280, 0), {"filename_prefix": f"sara/{STYLE_FOLDER}"}, size=(340, 110)),
        "plot": Node("LossGraphNode", (1280, 230), size=(340, 260)),
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

_SAMPLING = {"seed": 1, "control_after_generate": "fixed", "steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m",
             "scheduler": "karras"}  # fmt: skip

USE = Graph(
    nodes={
        "help": _note(USE_HELP, (-440, 0), (380, 430)),
        "checkpoint": _checkpoint((0, 0)),
        "delta": Node("SaRALoader", (0, 230), {"sara_name": DELTA}, size=(340, 110)),
        "prompt": Node(
            "CLIPTextEncode", (440, 0), {"text": "my style, a lighthouse by the sea"}, "Prompt", (340, 130)
        ),
        "negative": Node("CLIPTextEncode", (440, 230), {"text": "text, watermark"}, "Negative prompt", (340, 110)),
        "noise": Node("EmptyLatentImage", (440, 440), {"width": 512, "height": 512}, "Picture size", (340, 110)),
        "sampler": Node("KSampler", (880, 0), _SAMPLING, size=(300, 270)),
        "decoder": Node("VAEDecode", (1280, 0), size=(300, 60)),
        "picture": Node("SaveImage", (1280, 130), {"filename_prefix": "sara/picture"}, "Save Image (with the delta)", (300, 330)),
        "plain sampler": Node("KSampler", (880, 640), _SAMPLING, "KSampler (without the delta)", (300, 270)),
        "plain decoder": Node("VAEDecode", (1280, 640), size=(300, 60)),
        "plain picture": Node("PreviewImage", (1280, 770), title="Preview Image (without the delta)", size=(300, 300)),
        "compare help": _note(COMPARE_HELP, (440, 640), (340, 130)),
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
        "The same without the delta": ["plain sampler", "plain decoder", "plain picture"],
    },
)

BAKE = Graph(
    nodes={
        "help": _note(BAKE_HELP, (-440, 0), (380, 400)),
        "delta": Node("SaRALoader", (0, 0), {"sara_name": DELTA}, size=(340, 110)),
        "bake": Node(
            "SaRABake", (440, 0), {"ckpt_name": CHECKPOINT, "filename_prefix": f"checkpoints/{STYLE_FOLDER}"},
            size=(360, 150), properties={"models": [CHECKPOINT_SOURCE]},
        ),
    },
    links=[("delta", "delta", "bake", "delta")],
    groups={"1. Choose the delta": ["delta"], "2. Bake it into a checkpoint": ["bake"]},
)  # fmt: skip

GRAPHS = {"Train a style": TRAIN, "Use a delta": USE, "Bake a delta": BAKE}
