"""Which MODELs training refuses by name, and why. Kinds of models that nobody has tried are tried."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ....sara_core.backward.attach import layers
from ....sara_core.backward.own_forward import own_methods
from ....sara_core.errors import TrainingError, UnsupportedModelError
from ....sara_core.wording import Sentence
from ..family import model_family
from ..precision import is_known, precision_of
from .self_check import check_kind

_UNTRAINABLE = {
    "SVD_img2vid": "makes all frames of a video out of one picture, which training data for it would have to hold",
    "LTXAV": "makes video and sound at once, and training knows latents of one kind",
    "MiniMaxH3": "makes video and sound at once, and training knows latents of one kind",
    "TripoSplat": "makes a thing and its camera at once, and training knows latents of one kind",
    "WAN21_CausalAR": "makes a video piece by piece out of what it has made before",
    "StableCascade_B": "refines what stage C has made: train stage C",
    "SeedVR2": "restores a damaged video, and never starts from noise and text",
    "RT_DETR_v4": "finds things in pictures and makes none",
    "DepthAnything3": "measures the depth of pictures and makes none",
    "SAM3": "cuts things out of pictures and makes none",
}  # By the class of ComfyUI's model, or of one that it is derived from.

# Turn one picture into another at once, without noise that could be removed (Lotus, FlowRVS).
_WITHOUT_NOISE = {"IMG_TO_IMG", "IMG_TO_IMG_FLOW"}

# Where the host puts the pictures that a conditioning carries.
_PICTURES = ("concat_latent_image", "concat_image", "noise_concat")
# What these are given beside the noise is an empty picture always; the real one is a reference. By the class of the
# model: the node that adds it.
_FROM_A_REFERENCE = {"WAN21_SCAIL": "WanSCAILToVideo", "WAN21_HuMo": "WanHuMoImageToVideo"}
# Without a picture they make one from the text alone.
_NEED_NO_PICTURE = {"HunyuanVideo15", "Kandinsky5"}

# The methods by which a layer computes.
_COMPUTING = ("forward", "_conv_forward", "forward_comfy_cast_weights")


def check_trainable(model) -> None:
    """Raise UnsupportedModelError, naming it, for a MODEL (a ModelPatcher) that cannot be trained on captions."""
    reasons = [_UNTRAINABLE[name] for name in _classes(model) if name in _UNTRAINABLE]
    if model.model.model_type.name in _WITHOUT_NOISE:
        reasons.append("turns one picture into another without starting from noise")
    if reasons:
        raise UnsupportedModelError(Sentence(
            "A {family} MODEL cannot be trained: it {reason}. Connect a model that makes pictures or videos from "
            "text.", family=model_family(model), reason=reasons[0],
        ))  # fmt: skip


def check_layers(module: torch.nn.Module, device: torch.device) -> None:
    """Raise UnsupportedModelError, naming it, if a layer of a loaded model computes otherwise than training does: as
    the host's layers, without what a node has put there. Of each kind that is not known, one is tried.

    device: where the model computes

    What was put there for an earlier prompt and taken off again does not count.
    """
    found, unknown = layers(module), defaultdict(list)
    for name, layer in found.items():
        for method in own_methods(layer):
            if _is_bypass(layer.__dict__[method]):
                raise UnsupportedModelError(Sentence(
                    "This MODEL carries a LoRA in bypass mode (on '{layer}'), which training would leave out: load "
                    "it with Load LoRA in place of Load LoRA (Bypass).", layer=name,
                ))  # fmt: skip
            raise UnsupportedModelError(Sentence(
                "A node has changed how the layer '{layer}' of this MODEL computes, which training would leave "
                "out: connect the MODEL from before that node. If this workflow has none, restart ComfyUI.",
                layer=name,
            ))  # fmt: skip
        if not _is_prepared(layer):
            unknown[type(layer), precision_of(layer.weight)].append(name)
    for names in unknown.values():
        smallest = min(names, key=lambda name: found[name].weight.shape.numel())
        check_kind(smallest, found[smallest], device)
    _check_experts(module)


def _is_prepared(layer) -> bool:
    methods = (getattr(type(layer), method, None) for method in _COMPUTING)
    return all(map(_is_the_hosts, methods)) and is_known(layer.weight)


def _check_experts(module) -> None:
    for name, part in module.named_modules():
        stored = precision_of(part.weight) if hasattr(part, "expert_linear") else None
        if stored is not None:
            raise UnsupportedModelError(
                f"The experts '{name}' of this MODEL are stored in {stored}, in which ComfyUI gives no gradient: train "
                "the model in bf16."
            )


def _is_the_hosts(method) -> bool:
    return method is None or method.__module__ == "comfy.ops" or method.__module__.startswith("torch.")


def _is_bypass(method) -> bool:
    """Whether it is that of a LoRA; one that the host could not take off properly has lost the layer's own."""
    hook = getattr(method, "__self__", None)
    is_hook = type(hook).__module__.startswith("comfy.weight_adapter")
    return is_hook and getattr(hook, "original_forward", None) is not None


def check_picture_given(model, conditions: dict, options: dict) -> None:
    """Raise UnsupportedModelError for a MODEL that works from a picture and a text, if it is given the text only: the
    host then puts an empty picture in its place, and the model would learn to expect that.

    conditions: the inputs that the host made of a caption; options: of the caption's CONDITIONING entry
    """
    classes = set(_classes(model))
    nodes_of_references = [_FROM_A_REFERENCE[name] for name in classes & _FROM_A_REFERENCE.keys()]
    pictures = ("reference_latents",) if nodes_of_references else _PICTURES
    if "c_concat" not in conditions or any(options.get(key) is not None for key in pictures):
        return
    # An inpainting model is told that everything is masked: that is to make a picture from the text alone.
    inpaints = "masked_image" in model.model.concat_keys or type(model.model.model_config).__name__ == "FluxInpaint"
    if inpaints or _NEED_NO_PICTURE & classes:
        return
    nodes = ", ".join(nodes_of_references) or "WanImageToVideo, InstructPixToPixConditioning …"
    raise UnsupportedModelError(Sentence(
        "This {family} MODEL works from a picture beside the text (image to video, editing, control). Give every "
        "caption its picture with the node you sample this model with ({nodes}), or train the model that works "
        "from text alone.", family=model_family(model), nodes=nodes,
    ))  # fmt: skip


@contextmanager
def incomplete_captions_explained(model, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Around code of the host: what it raises if a caption carries less, or other things, than its MODEL reads becomes
    a TrainingError, with the host's own words.

    kinds: of exceptions that mean this and nothing else there
    """
    try:
        yield
    except kinds as error:
        raise TrainingError(Sentence(
            "This {family} MODEL cannot work with what the captions carry ({why}). Connect to 'positive' what you "
            "connect to a KSampler with this MODEL: nodes made for it add to a caption what it needs beside the "
            "text.", family=model_family(model), why=str(error),
        )) from error  # fmt: skip


def _classes(model) -> list[str]:
    return [base.__name__ for base in type(model.model).__mro__]
