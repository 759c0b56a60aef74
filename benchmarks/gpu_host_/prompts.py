"""The workflows of gpu_host.py, in API format: nodes by name, so that a prompt is put together of parts."""

from collections.abc import Mapping
from typing import Any

Prompt = dict[str, dict[str, Any]]

CAPTION = "a red circle on a yellow ground"
SAMPLING = {"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "cfg": 4.0, "seed": 7}
MODEL = ["checkpoint", 0]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def base(checkpoint: str) -> Prompt:
    """The model, and captions that it encodes."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text=CAPTION),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
    }


def delta(name: str, strength: float, model: list = MODEL) -> dict[str, Any]:
    return node("SaRALoader", model=model, sara_name=name, strength=strength)


def lora(name: str, strength: float, model: list = MODEL) -> dict[str, Any]:
    return node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength)


def drawn(model: list, size: int, steps: int) -> Prompt:
    """A picture, drawn anew each time; the output node is `picture`."""
    return {
        "again": node("GpuHostAgain", model=model),
        "latent": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "sampled": node(
            "KSampler", model=["again", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], steps=steps, **SAMPLING,
        ),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["checkpoint", 2]),
        "picture": node("SaveImage", images=["decoded", 0], filename_prefix="picture"),
    }  # fmt: skip


def probed(model: list, expected: str = "") -> Prompt:
    """The weights; the output node is `probe`."""
    return {"probe": node("GpuHostProbe", model=model, expected=expected)}


def training(folder: str, size: int, widgets: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Prompt:
    """SaRA Train on the pictures of an input folder; the nodes `train` and, which saves the delta, `save`."""
    prompt = {
        "dataset": node(
            "SaRADataset", folders=folder, trigger="", caption="", resolution=size, buckets=True, flip=False,
            vae=["checkpoint", 2], clip=["checkpoint", 1],
        ),
        "train": node("SaRATrain", model=MODEL, latents=["dataset", 4], positive=["dataset", 5], **widgets),
        "save": node("SaRASave", delta=["train", 0], filename_prefix="sara/trained"),
    }  # fmt: skip
    if options:
        prompt["options"] = node("SaRATrainOptions", **options)
        prompt["train"]["inputs"]["options"] = ["options", 0]
    return prompt
