"""Putting a delta on a model: from a file, or from another node."""

import logging
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sara_core.delta import SparseDelta, modelspec, text_part
from ..sara_core.errors import DeltaError
from .checks import checked_inputs, refusal
from .delta_rows import STRONGEST, DeltaRow, parse_rows
from .host import folders, identity, patching, text_encoders
from .host.loading.recent import RecentDeltas
from .host.progress import show_text
from .host.remedies import advice
from .sockets import SaraDelta

# What the menu offers as long as there is nothing to choose: an empty one the host would refuse in its own words.
NO_DELTA = "(no delta yet)"
_STRENGTH_TOOLTIP = (
    "How strongly to apply the delta. 1 is what was trained, 0 leaves the model alone, negative values go the "
    "opposite way."
)


def _stop_if_cancelled(done: int, total: int) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


_recent = RecentDeltas(lambda path: SparseDelta.load(path, advice, _stop_if_cancelled))


def _patched(delta: SparseDelta, model, clip, row: DeltaRow, say: Callable[[str], None]) -> tuple:
    """MODEL and CLIP with the delta, each None where none is connected. `say` is told, for the node, what is left out,
    and a warning if the delta was trained on another model, or another variant."""
    left_out: list[str] = []
    of_model, of_text = text_part.split(delta)
    patched, patched_clip = model, clip
    if model is not None and (of_model.entries or not of_text.entries):
        patched = patching.patch_model(model, of_model, row.strength, left_out.append)
    if of_text.entries and clip is not None:
        patched_clip = text_encoders.patch_clip(clip, of_text, row.strength_clip, left_out.append)
    elif of_text.entries and model is not None:
        left_out.append(text_encoders.without_clip(of_text))
    for text in left_out:
        logging.warning(f"SaRA: {text}")
        say(text)
    if patched is not model and (text := identity.remark(model, delta)):
        say(text)
    return patched, patched_clip


def _does_something(delta: SparseDelta, row: DeltaRow) -> bool:
    return bool(row.strength or row.strength_clip and text_part.split(delta)[1].entries)


def _show(node_class, said: list[str]) -> None:
    if said:
        show_text(node_class, "\n".join(said))


def _path(name: str) -> Path:
    if name == NO_DELTA:
        raise DeltaError("You have no delta yet: train one with SaRA Train, or put one into models/sara and press R.")
    return folders.delta_path(name)


def _strength() -> io.Float.Input:
    return io.Float.Input("strength", default=1.0, min=-STRONGEST, max=STRONGEST, step=0.01, tooltip=_STRENGTH_TOOLTIP)


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
            min=-STRONGEST,
            max=STRONGEST,
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
            category="SaRA",
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
                    options=folders.delta_names() or [NO_DELTA],
                    tooltip="A delta file in models/sara or output/sara.",
                ),
                _strength(),
                *_clip_inputs(),
                io.String.Input(
                    "more",
                    optional=True,
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Further deltas, a line each, put on after the first: its name in the menu, an equals sign "
                    "and its strength. A second number is its strength_clip; a line that ends in ', off' is left out.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the delta applied, or with all of them."),
                SaraDelta.Output(display_name="delta", tooltip="The first delta, to apply, bake or save again."),
                _clip_output(),
                io.String.Output(
                    display_name="trigger",
                    tooltip="The words that bring out what the deltas learned, as far as their files say them, for the "
                    "prompt. Not of those that are off or have the strength 0.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, sara_name=None, strength=None, strength_clip=None, more=None):
        try:
            for name in [sara_name, *_names(more or "")]:
                if name is not None:  # otherwise it comes from another node and is not known yet
                    _path(name)
        except DeltaError as error:
            return str(error)
        return refusal(cls, strength=strength, strength_clip=strength_clip, more=more)

    @classmethod
    def fingerprint_inputs(cls, sara_name, more="", **others):
        return " ".join(folders.fingerprint(_path(name)) for name in [sara_name, *_names(more or "")])

    @classmethod
    @checked_inputs
    def execute(cls, sara_name, strength, model=None, clip=None, strength_clip=1.0, more="") -> io.NodeOutput:
        rows = [DeltaRow(sara_name, strength, strength_clip), *(row for row in parse_rows(more) if row.is_on)]
        deltas = _recent.load([_path(row.name) for row in rows])
        said: list[str] = []
        patched, patched_clip = model, clip
        for row, delta in zip(rows, deltas):
            patched, patched_clip = _patched(delta, patched, patched_clip, row, said.append)
        _show(cls, said)
        return io.NodeOutput(
            _or_blocked(patched, "SaRA Loader has no model: connect one to its model input."),
            deltas[0],
            _or_blocked(patched_clip, "SaRA Loader has no CLIP: connect one to its clip input."),
            modelspec.joined_triggers(
                delta.metadata for row, delta in zip(rows, deltas) if _does_something(delta, row)
            ),
        )


def _names(more: str) -> list[str]:
    """Of all further deltas that are on."""
    return [row.name for row in parse_rows(more) if row.is_on]


class SaRAApply(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRAApply",
            display_name="SaRA Apply",
            category="SaRA",
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
        said: list[str] = []
        row = DeltaRow("", strength, strength_clip)
        patched, patched_clip = _patched(delta, model, clip, row, said.append)
        _show(cls, said)
        return io.NodeOutput(
            patched, _or_blocked(patched_clip, "SaRA Apply has no CLIP: connect one to its clip input.")
        )
