"""Files of other formats as deltas, and deltas as files of other formats."""

from comfy_api.latest import io, ui

from ..sara_core.conversion.adapters.readings import READINGS, TRAINED
from ..sara_core.conversion.dense.programs import COMFYUI, PROGRAMS
from ..sara_core.conversion.read import read_delta
from ..sara_core.conversion.registry import OWN, READERS, WRITERS, format_names
from ..sara_core.conversion.request import DEFAULT_RANK
from ..sara_core.conversion.write import write_delta
from ..sara_core.errors import DeltaError
from ..sara_core.foreign_text import plain_lines
from .checks import checked_inputs, refusal
from .host import folders, model_files, unsaved
from .host.progress import show_text, shown_progress
from .host.remedies import REMEDIES
from .sockets import SaraDelta

NONE = "none"


class SaRAConvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        models = model_files.base_names()
        others = ", ".join(name for name in format_names() if name not in READERS[OWN].names)
        return io.Schema(
            node_id="SaRAConvert",
            display_name="SaRA Convert",
            category="SaRA",
            description="Makes a SaRA delta of a file of another kind, which it recognises by itself (the SaRA "
            f"authors' .pt, {others}, a tuned model), and saves it, or "
            "another delta, as a SaRA file, as dense differences, as a LoRA, or as SHiRA for PEFT.",
            search_aliases=["convert sara", "lora to sara", "sara to lora", "import delta", "export delta", "shira"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "file_name",
                    options=[NONE, *model_files.adapter_names(), *models],
                    tooltip="The file to convert: in models/loras, or a tuned model. None if a delta is connected.",
                ),
                io.Combo.Input(
                    "base_name",
                    options=[NONE, *models],
                    tooltip="The model that the file was made for: a checkpoint, a diffusion model, or a pipeline in "
                    "models/diffusers. Only SaRA files need none.",
                ),
                io.Float.Input(
                    "density",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Percent of the model's weights whose changes are kept, the largest first, for files that "
                    "change every weight, like LoRAs. 0 keeps every change.",
                ),
                io.Combo.Input(
                    "to",
                    options=[NONE, *WRITERS],
                    default=OWN,
                    tooltip="What to save: sara for SaRA Loader; diff for Load LoRA of any ComfyUI, as large as the "
                    "model; lora, which is small but only near; shira, a folder for PEFT; none saves nothing.",
                ),
                io.Int.Input(
                    "rank",
                    default=DEFAULT_RANK,
                    min=1,
                    max=4096,
                    tooltip="Of the LoRA. The higher, the nearer it is and the larger its file.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="sara/converted",
                    tooltip="Folder and beginning of the name, under the output folder. Files in output/sara are "
                    "offered by SaRA Loader and Load LoRA.",
                ),
                SaraDelta.Input(
                    "delta",
                    optional=True,
                    tooltip="A delta to save, from SaRA Train or SaRA Loader, instead of a file's.",
                ),
                io.Combo.Input(
                    "reading",
                    options=list(READINGS),
                    default=TRAINED,
                    optional=True,
                    tooltip="Of the few kinds of adapters that ComfyUI itself shows otherwise than they were trained: "
                    "trained takes what was trained, comfyui what Load LoRA shows. The report says where they differ.",
                ),
                io.Combo.Input(
                    "reader",
                    options=list(PROGRAMS),
                    default=COMFYUI,
                    optional=True,
                    tooltip="The program that is to load the LoRA: it gets that program's names, and what it does not "
                    "take is left out and said in the report.",
                ),
            ],
            outputs=[
                SaraDelta.Output(display_name="delta", tooltip="The delta, to apply, merge or save again."),
                io.String.Output(
                    display_name="report", tooltip="What the file was, what was lost, and what was saved where."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file_name, base_name, **others):
        paths = [model_files.foreign_path(file_name)] if file_name != NONE else []
        paths += [model_files.base_path(base_name)] if base_name != NONE else []
        return [folders.fingerprint(path) for path in paths]

    @classmethod
    def validate_inputs(cls, density=None, filename_prefix=None):
        return refusal(cls, density=density, filename_prefix=filename_prefix)

    @classmethod
    @checked_inputs
    def execute(
        cls, file_name, base_name, density, to, rank, filename_prefix, delta=None, reading=TRAINED, reader=COMFYUI
    ) -> io.NodeOutput:
        base, on_progress = None if base_name == NONE else model_files.base_path(base_name), shown_progress()
        lines = []
        if delta is None:
            if file_name == NONE:
                raise DeltaError("SaRA Convert has nothing to convert: choose a file, or connect a delta.")
            conversion = read_delta(
                model_files.foreign_path(file_name), base, density / 100 or None, on_progress, REMEDIES, reading
            )
            delta = conversion.delta
            lines.append(conversion.text())
        if to != NONE:
            path, report = folders.save_new(
                folders.output_paths(filename_prefix, WRITERS[to].ending),
                lambda path: write_delta(delta, path, to, base, rank, on_progress, overwrite=False, reader=reader),
            )
            saved = f"Saved as output/{folders.relative_to_output(path)}"
            if to == OWN:
                unsaved.saved(delta)
                saved = "\n".join(filter(None, [saved, folders.not_offered(path)]))
            lines.append(report)
            show_text(cls, saved)
            lines.append(saved)
        text = plain_lines("\n".join(lines))
        return io.NodeOutput(delta, text, ui=ui.PreviewText(text))
