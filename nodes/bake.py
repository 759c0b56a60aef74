"""Baking a delta into a checkpoint, or a diffusion model's file, that any program loads."""

from comfy_api.latest import io, ui

from ..sara_core.models.bake import AS_THE_FILE, PRECISIONS, bake
from .checks import checked_inputs, refusal
from .host import folders
from .host.progress import show_text, shown_progress
from .sockets import SaraDelta

# Where the loader of a checkpoint finds it, and that of a diffusion model.
_PREFIX, _MODEL_PREFIX = f"{folders.CHECKPOINTS}/baked", f"{folders.DIFFUSION_MODELS}/baked"


class SaRABake(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRABake",
            display_name="SaRA Bake",
            category="SaRA",
            description="Writes a new checkpoint file with a SaRA delta baked in. Every weight the delta does not "
            "change keeps its bytes.",
            search_aliases=["bake sara", "merge delta", "save checkpoint", "sparse delta"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=folders.checkpoint_and_model_names(),
                    tooltip="The .safetensors checkpoint, or file of a diffusion model alone (.gguf too), to bake the "
                    "delta into: the one it was trained on. The file itself stays as it is.",
                ),
                SaraDelta.Input("delta", tooltip="The delta to bake in, from SaRA Train or SaRA Loader."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly to bake the delta in. 1 is what was trained.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default=_PREFIX,
                    tooltip="Folder and beginning of the new file's name, under the output folder. Files in "
                    "output/checkpoints are offered by Load Checkpoint. With the default, a diffusion model goes to "
                    "output/diffusion_models, whose files Load Diffusion Model offers.",
                ),
                io.Combo.Input(
                    "precision",
                    options=[AS_THE_FILE, *PRECISIONS],
                    default=AS_THE_FILE,
                    optional=True,
                    tooltip="Of quantised weights (fp8, nvfp4, int8 …). As the file: they keep their format, whose "
                    "rounding takes some of the changes back. bf16 or fp16: all of them are written so, and the file "
                    "is larger. GGUF files need one of these.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="filename", tooltip="Where the new checkpoint is, relative to the output folder."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, strength=None, filename_prefix=None):
        return refusal(cls, strength=strength, filename_prefix=filename_prefix)

    @classmethod
    @checked_inputs
    def execute(cls, ckpt_name, delta, strength, filename_prefix, precision=AS_THE_FILE) -> io.NodeOutput:
        checkpoint, on_progress = folders.model_path(ckpt_name), shown_progress()
        if filename_prefix == _PREFIX and folders.is_diffusion_model(ckpt_name):
            filename_prefix = _MODEL_PREFIX
        path, report = folders.save_new(
            folders.output_paths(filename_prefix),
            lambda path: bake(checkpoint, path, delta, strength, on_progress, overwrite=False, precision=precision),
        )
        filename = folders.relative_to_output(path)
        show_text(cls, f"Saved as output/{filename}\n{report.text()}".strip())
        return io.NodeOutput(filename, ui=ui.PreviewText(filename))
