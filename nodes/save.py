"""Saving a delta as a file that SaRA Loader and Load LoRA offer."""

import io as bytes_io
from datetime import datetime, timezone

import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageOps

from ..sara_core.delta import SparseDelta, modelspec
from ..sara_core.delta.rounding import differing_weights, rounded_values
from ..sara_core.errors import DeltaError
from .checks import checked_inputs, refusal
from .host import folders, unsaved
from .host.base_weights import base_weights
from .host.family import delta_family
from .host.progress import show_text
from .host.training.ending import delta_was_saved
from .sockets import SaraDelta

VALUE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
THUMBNAIL_SIZE = (256, 256)


def _said(name: str, tooltip: str, multiline: bool = False) -> io.String.Input:
    return io.String.Input(name, optional=True, default="", advanced=True, multiline=multiline, tooltip=tooltip)


class SaRASave(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRASave",
            display_name="SaRA Save",
            category="SaRA",
            description="Saves a SaRA delta under the output folder. It never overwrites: the next number is taken.",
            search_aliases=["save sara", "save delta", "export delta", "sparse delta", "save lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                SaraDelta.Input("delta", tooltip="The delta to save, from SaRA Train or SaRA Loader."),
                io.String.Input(
                    "filename_prefix",
                    default="sara/delta",
                    tooltip="Folder and beginning of the name, under the output folder. Files in output/sara are "
                    "offered by SaRA Loader and Load LoRA.",
                ),
                io.Combo.Input(
                    "values",
                    options=list(VALUE_DTYPES),
                    default="fp32",
                    tooltip="fp32 keeps every bit of what was trained. bf16 makes the file about two fifths smaller, "
                    "and rounds each change by 0.2 % at most: for sharing.",
                ),
                _said("title", "What model browsers call the file. Empty: the file's name."),
                _said("author", "Who made it."),
                _said("trigger_phrase", "Words of the captions that bring out what was learned, for model browsers."),
                _said("tags", "Words to find the file by in model browsers, separated by commas."),
                _said("description", "What the delta does and how to use it.", multiline=True),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip="A picture for model browsers. Its middle is kept, in 256 × 256 pixels.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Only for bf16: the model that the delta is for, to count how many of its weights come out "
                    "different for the rounding.",
                ),
                _said("license", "What others may do with the file, like CC-BY-4.0."),
            ],
            outputs=[SaraDelta.Output(display_name="delta", tooltip="The same delta, to go on with.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return refusal(cls, filename_prefix=filename_prefix)

    @classmethod
    @checked_inputs
    def execute(cls, delta, filename_prefix, values, thumbnail=None, model=None, **said) -> io.NodeOutput:
        if thumbnail is not None:
            said["thumbnail"] = modelspec.data_url(_jpeg(thumbnail))
        family = delta_family(delta.metadata) or ""
        now = datetime.now(timezone.utc)

        def save(path):
            metadata = modelspec.described(delta.metadata, family, path.stem.strip("_"), said, now)
            SparseDelta(delta.entries, metadata).save(path, VALUE_DTYPES[values], overwrite=False)

        path, _ = folders.save_new(folders.output_paths(filename_prefix), save)
        if (copy := unsaved.saved(delta)) is not None:
            delta_was_saved(copy, path)
        filename = folders.relative_to_output(path)
        lines = [f"Saved as output/{filename}", *filter(None, [folders.not_offered(path)])]
        if values == "bf16":
            lines.append(_rounding(delta, model))
        show_text(cls, "\n".join(lines))
        return io.NodeOutput(delta, ui=ui.PreviewText(filename))


def _rounding(delta: SparseDelta, model) -> str:
    """What bf16 costs, for people."""
    text = f"bf16 rounds {rounded_values(delta, torch.bfloat16):,} of {delta.nnz:,} changes."
    if model is None:
        return text
    weights = base_weights(model)
    try:
        differing = differing_weights(delta, torch.bfloat16, weights)
    except DeltaError as error:  # the file is saved all the same
        return f"{text} {error}"
    dtypes = {str(weights[name].dtype).removeprefix("torch.") for name in delta.entries if name in weights}
    return f"{text} {differing:,} of the model's weights ({', '.join(sorted(dtypes))}) come out different by it."


def _jpeg(images: torch.Tensor) -> bytes:
    """The middle of the first of IMAGE's pictures, float32 [n, height, width, 3], as a small JPEG."""
    pixels = (images[0, ..., :3].detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    file = bytes_io.BytesIO()
    ImageOps.fit(Image.fromarray(pixels.numpy()), THUMBNAIL_SIZE).save(file, "JPEG", quality=85)
    return file.getvalue()
