"""The sparse delta between a base model and one tuned from it."""

from comfy_api.latest import io, ui

from ..sara_core.charts.density import density_picture
from ..sara_core.delta.describe import density_by_block
from ..sara_core.extraction.extract import extract_with_report
from ..sara_core.foreign_text import plain_lines
from .checks import checked_inputs
from .host import folders
from .host.progress import show_text, shown_progress
from .sockets import SaraDelta


class SaRAExtract(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = folders.model_names()
        return io.Schema(
            node_id="SaRAExtract",
            display_name="SaRA Extract",
            category="SaRA",
            description="Makes a SaRA delta out of a tuned model and the base it was tuned from: the largest changes, "
            "or those of another delta's weights.",
            search_aliases=["extract sara", "extract delta", "difference of models", "extract lora", "sparse delta"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "base_name",
                    options=names,
                    tooltip="The .safetensors file of the model that the other one was tuned from.",
                ),
                io.Combo.Input("tuned_name", options=names, tooltip="The .safetensors file of the tuned model."),
                io.Combo.Input(
                    "select_by",
                    options=["density", "count", "everything"],
                    default="density",
                    tooltip="Which of the next two numbers says how many changes are kept; everything keeps all of "
                    "them.",
                ),
                io.Float.Input(
                    "density",
                    default=1.0,
                    min=0.001,
                    max=100.0,
                    step=0.01,
                    tooltip="Percent of the model's weights whose changes are kept, the largest changes first.",
                ),
                io.Int.Input(
                    "count",
                    default=5_000_000,
                    min=1,
                    max=2**40,
                    tooltip="Number of changes to keep, the largest first.",
                ),
                SaraDelta.Input(
                    "support",
                    optional=True,
                    tooltip="With a delta connected, exactly the weights that it changes are taken, and select_by "
                    "does not count.",
                ),
            ],
            outputs=[
                SaraDelta.Output(display_name="delta", tooltip="The extracted delta. Save it with SaRA Save."),
                io.String.Output(display_name="report", tooltip="How much of the difference the delta holds."),
                io.Image.Output(display_name="picture", tooltip="Where in the model the changes are."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, base_name, tuned_name, **others):
        return [folders.fingerprint(folders.model_path(name)) for name in (base_name, tuned_name)]

    @classmethod
    @checked_inputs
    def execute(cls, base_name, tuned_name, select_by, density, count, support=None) -> io.NodeOutput:
        base, tuned = folders.model_path(base_name), folders.model_path(tuned_name)
        kept = {"density": {"density": density / 100}, "count": {"count": count}, "everything": {}}[select_by]
        if support is not None:
            kept = {"support": support}
        delta, report = extract_with_report(base, tuned, **kept, on_progress=shown_progress())
        text = plain_lines(report.text())
        show_text(cls, text.splitlines()[1])
        picture = density_picture(f"{tuned_name} minus {base_name}", density_by_block(delta)).image()
        return io.NodeOutput(delta, text, picture, ui=ui.PreviewImage(picture, cls=cls))
