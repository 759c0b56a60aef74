"""Putting a delta on a model: from a file, or from another node."""

import logging

import comfy.model_management
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sara_core.delta import SparseDelta, text_part
from ..sara_core.errors import DeltaError
from .checks import checked_inputs, refusal
from .host import folders, identity, patching, text_encoders
from .host.progress import show_text
from .host.remedies import advice
from .sockets import SaraDelta

_STRENGTH_TOOLTIP = (
    "How strongly to apply the delta. 1 is what was trained, 0 leaves the model alone, negative values go the "
    "opposite way."
)


def _stop_if_cancelled(done: int, total: int) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


class _LastRead:
    """The file that a loader read last, so that another strength does not read it again, as core's loaders have it."""

    def __init__(self):
        self._kept: tuple | None = None

    def load(self, path) -> SparseDelta:
        key = path, folders.fingerprint(path)
        kept = self._kept
        if kept is None or kept[0] != key:
            kept = self._kept = None  # let go of the old one before the new one takes memory
            kept = self._kept = key, SparseDelta.load(path, advice, _stop_if_cancelled)
        return kept[1]


_last_read = _LastRead()


def _patched(node_class, delta: SparseDelta, model, strength: float, clip, strength_clip: float) -> tuple:
    """MODEL and CLIP with the delta, each None where none is connected; on the node a line for what is left out, and a
    warning if the delta was trained on another model, or another variant."""
    said: list[str] = []
    of_model, of_text = text_part.split(delta)
    patched, patched_clip = model, clip
    if model is not None and (of_model.entries or not of_text.entries):
        patched = patching.patch_model(model, of_model, strength, said.append)
    if of_text.entries and clip is not None:
        patched_clip = text_encoders.patch_clip(clip, of_text, strength_clip, said.append)
    elif of_text.entries and model is not None:
        said.append(text_encoders.without_clip(of_text))
    for text in said:
        logging.warning(f"SaRA: {text}")
    if patched is not model and (text := identity.remark(model, delta)):
        said.append(text)
    if said:
        show_text(node_class, "\n".join(said))
    return patched, patched_clip


def _strength() -> io.Float.Input:
    return io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=_STRENGTH_TOOLTIP)


def _clip_inputs() -> tuple[io.Input, ...]:
    return (
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="The text encoders, for a delta that changes them too. Without it, that part is left out.",
        ),
        io.Float.Input(
            "strength_clip",
            default=1.0,
            min=-100.0,
            max=100.0,
            step=0.01,
            optional=True,
            tooltip="How strongly to apply what the delta changes in the text encoders, like strength.",
        ),
    )


def _clip_output() -> io.Output:
    return io.Clip.Output(tooltip="The text encoders with the delta applied.")


def _or_blocked(value, message: str):
    return ExecutionBlocker(message) if value is None else value


class SaRALoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRALoader",
            display_name="SaRA Loader",
            category="model/loaders",
            description="Loads a SaRA delta from a file and applies it to a model, like Load LoRA does with a LoRA.",
            search_aliases=["load sara", "load delta", "sparse delta", "lora loader", "apply sara"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model to apply the delta to. Without one, only the delta comes out.",
                ),
                io.Combo.Input(
                    "sara_name",
                    options=folders.delta_names(),
                    tooltip="A delta file in models/sara or output/sara.",
                ),
                _strength(),
                *_clip_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the delta applied."),
                SaraDelta.Output(display_name="delta", tooltip="The delta itself, to apply, bake or save again."),
                _clip_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, sara_name=None, strength=None, strength_clip=None):
        try:
            if sara_name is not None:  # otherwise it comes from another node and is not known yet
                folders.delta_path(sara_name)
        except DeltaError as error:
            return str(error)
        return refusal(cls, strength=strength, strength_clip=strength_clip)

    @classmethod
    def fingerprint_inputs(cls, sara_name, **others):
        return folders.fingerprint(folders.delta_path(sara_name))

    @classmethod
    @checked_inputs
    def execute(cls, sara_name, strength, model=None, clip=None, strength_clip=1.0) -> io.NodeOutput:
        delta = _last_read.load(folders.delta_path(sara_name))
        patched, patched_clip = _patched(cls, delta, model, strength, clip, strength_clip)
        return io.NodeOutput(
            _or_blocked(patched, "SaRA Loader has no model: connect one to its model input."),
            delta,
            _or_blocked(patched_clip, "SaRA Loader has no CLIP: connect one to its clip input."),
        )


class SaRAApply(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRAApply",
            display_name="SaRA Apply",
            category="model/loaders",
            description="Applies a SaRA delta from another node, for example SaRA Train, to a model.",
            search_aliases=["apply sara", "apply delta", "sparse delta"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to apply the delta to."),
                SaraDelta.Input("delta", tooltip="The delta to apply, from SaRA Train or SaRA Loader."),
                _strength(),
                *_clip_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with the delta applied."), _clip_output()],
        )

    @classmethod
    def validate_inputs(cls, strength=None, strength_clip=None):
        return refusal(cls, strength=strength, strength_clip=strength_clip)

    @classmethod
    @checked_inputs
    def execute(cls, model, delta, strength, clip=None, strength_clip=1.0) -> io.NodeOutput:
        patched, patched_clip = _patched(cls, delta, model, strength, clip, strength_clip)
        return io.NodeOutput(
            patched, _or_blocked(patched_clip, "SaRA Apply has no CLIP: connect one to its clip input.")
        )
