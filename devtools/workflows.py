"""The demo's three workflows in ComfyUI's API format: train a style, use a delta, bake a delta."""

from collections.abc import Mapping, Sequence
from typing import Any

from demo import settings

Prompt = dict[str, dict[str, Any]]


def train_style(checkpoint: str, folder: str, training: Mapping[str, Any], prefix: str) -> Prompt:
    """Train on the pictures and captions of an input folder; save the delta and plot the loss.

    training: SaRATrain's widgets by name. The delta's name is in the outputs of node "save", the plot in "plot".
    """
    return {
        "checkpoint": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "pictures": _node("LoadImageTextDataSetFromFolder", folder=folder),
        "latents": _node("VAEEncode", pixels=["pictures", 0], vae=["checkpoint", 2]),
        "captions": _node("CLIPTextEncode", clip=["checkpoint", 1], text=["pictures", 1]),
        "train": _node(
            "SaRATrain", model=["checkpoint", 0], latents=["latents", 0], positive=["captions", 0], **training
        ),
        "save": _node("SaRASave", delta=["train", 0], filename_prefix=prefix, values="fp32"),
        "plot": _node("LossGraphNode", loss=["train", 1], filename_prefix="loss"),
    }


def use_delta(checkpoint: str, captions: Sequence[str], delta: str | None, strength: float = 1.0) -> Prompt:
    """Draw one picture per caption, with a delta on the model or, with None, without one.

    Caption i is drawn from seed i; its picture is in the outputs of node "picture <i>".
    """
    prompt = {
        "checkpoint": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "no caption": _node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "noise": _node("EmptyLatentImage", width=settings.SIZE, height=settings.SIZE, batch_size=1),
    }
    model = ["checkpoint", 0]
    if delta is not None:
        prompt["delta"] = _node("SaRALoader", model=model, sara_name=delta, strength=strength)
        model = ["delta", 0]
    for i, caption in enumerate(captions):
        prompt[f"caption {i}"] = _node("CLIPTextEncode", clip=["checkpoint", 1], text=caption)
        prompt[f"sample {i}"] = _node(
            "KSampler", model=model, positive=[f"caption {i}", 0], negative=["no caption", 0],
            latent_image=["noise", 0], seed=i, steps=settings.SAMPLE_STEPS, cfg=settings.GUIDANCE,
            sampler_name=settings.SAMPLER, scheduler=settings.SCHEDULER, denoise=1.0,
        )  # fmt: skip
        prompt[f"decoded {i}"] = _node("VAEDecode", samples=[f"sample {i}", 0], vae=["checkpoint", 2])
        prompt[f"picture {i}"] = _node("SaveImage", images=[f"decoded {i}", 0], filename_prefix="sara-demo/picture")
    return prompt


def bake_delta(checkpoint: str, delta: str, prefix: str, strength: float = 1.0) -> Prompt:
    """Bake a delta into a checkpoint; the new file's name is in the outputs of node "bake"."""
    return {
        "delta": _node("SaRALoader", sara_name=delta, strength=1.0),
        "bake": _node(
            "SaRABake", ckpt_name=checkpoint, delta=["delta", 1], strength=strength, filename_prefix=prefix
        ),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
