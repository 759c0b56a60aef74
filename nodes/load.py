"""Putting a delta on a model: from a file, or from another node."""

import logging

import comfy.model_management
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sara_core.delta import SparseDelta
from ..sara_core.errors import DeltaError
from .checks import checked_inputs, refusal
from .host import folders, identity, patching
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


def _patched(node_class, model, delta: SparseDelta, strength: float):
    """The MODEL with the delta; a warning on the node if the delta was trained on another one, or another variant."""
    said: list[str] = []
    patched = patching.patch_model(model, delta, strength, said.append)
    for text in said:
        logging.warning(f"SaRA: {text}")
    if strength != 0 and (text := identity.remark(model, delta)):
        said.append(text)
    if said:
        show_text(node_class, "\n".join(said))
    return patched


def _strength() -> io.Float.Input:
    return io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=_STRENGTH_TOOLTIP)


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
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the delta applied."),
                SaraDelta.Output(display_name="delta", tooltip="The delta itself, to apply, bake or save again."),
            ],
        )

    @classmethod
    def validate_inputs(cls, sara_name=None, strength=None):
        try:
            if sara_name is not None:  # otherwise it comes from another node and is not known yet
                folders.delta_path(sara_name)
        except DeltaError as error:
            return str(error)
        return refusal(cls, strength=strength)

    @classmethod
    def fingerprint_inputs(cls, sara_name, **others):
        return folders.fingerprint(folders.delta_path(sara_name))

    @classmethod
    @checked_inputs
    def execute(cls, sara_name, strength, model=None) -> io.NodeOutput:
        delta = _last_read.load(folders.delta_path(sara_name))
        if model is None:
            return io.NodeOutput(ExecutionBlocker("SaRA Loader has no model: connect one to its model input."), delta)
        return io.NodeOutput(_patched(cls, model, delta, strength), delta)


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
            ],
            outputs=[io.Model.Output(tooltip="The model with the delta applied.")],
        )

    @classmethod
    def validate_inputs(cls, strength=None):
        return refusal(cls, strength=strength)

    @classmethod
    @checked_inputs
    def execute(cls, model, delta, strength) -> io.NodeOutput:
        return io.NodeOutput(_patched(cls, model, delta, strength))
