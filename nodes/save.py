"""Saving a delta as a file that SaRA Loader and Load LoRA offer."""

import torch
from comfy_api.latest import io, ui

from .host import folders
from .host.progress import show_text
from .sockets import SaraDelta

VALUE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SaRASave(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRASave",
            display_name="SaRA Save",
            category="model/merging",
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
                    tooltip="fp32 keeps every bit of what was trained; bf16 makes the file about two fifths smaller.",
                ),
            ],
            outputs=[SaraDelta.Output(display_name="delta", tooltip="The same delta, to go on with.")],
        )

    @classmethod
    def execute(cls, delta, filename_prefix, values) -> io.NodeOutput:
        path = folders.new_output_path(filename_prefix)
        delta.save(path, VALUE_DTYPES[values])
        filename = folders.relative_to_output(path)
        show_text(cls, f"Saved as output/{filename}")
        return io.NodeOutput(delta, ui=ui.PreviewText(filename))
