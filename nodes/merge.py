"""Several deltas into one."""

from comfy_api.latest import io, ui

from ..sara_core.charts.merge import merge_picture
from ..sara_core.delta import modelspec
from ..sara_core.errors import DeltaError
from ..sara_core.merging.block_factors import ALL_BLOCKS, block_presets, parse_blocks
from ..sara_core.merging.merge import METHODS, SIGNS, MergeSettings, merge_with_report
from ..sara_core.numbers import read_list
from .checks import checked_inputs, refusal
from .host import unsaved
from .host.progress import show_text
from .sockets import SaraDelta

MOST_DELTAS = 50


class SaRAMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRAMerge",
            display_name="SaRA Merge",
            category="SaRA",
            description="Merges any number of SaRA deltas into one, each with its weight, and shows how they overlap.",
            search_aliases=["merge sara", "merge delta", "combine deltas", "ties", "dare", "block weight"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Autogrow.Input(
                    "deltas",
                    template=io.Autogrow.TemplateNames(
                        SaraDelta.Input("delta", tooltip="A delta, from SaRA Train or SaRA Loader."),
                        names=[f"delta_{number}" for number in range(1, MOST_DELTAS + 1)],
                        min=1,
                    ),
                    tooltip="The deltas to merge, all for models of one family. A new input appears for the next one.",
                ),
                io.String.Input(
                    "weights",
                    default="1",
                    tooltip="How much of each delta, in their order, with commas between: 0.6, -0.4. Weights may be "
                    "negative or above 1. One number is for all.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="sum",
                    tooltip="sum adds the changes. mean divides the sum by the number of deltas. ties takes the "
                    "largest changes of each, lets them vote on the direction and averages those that agree. dare "
                    "takes random changes of each and makes up for the others.",
                ),
                io.Float.Input(
                    "keep",
                    default=50.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Percent of each delta's changes that ties and dare take. Lower it where merged styles "
                    "spoil each other, raise it where one is lost. Sum and mean take all.",
                ),
                io.Combo.Input(
                    "sign",
                    options=list(SIGNS),
                    default="total",
                    tooltip="Where deltas pull a weight in opposite directions, ties keeps one: total that of the "
                    "larger changes, count that of more deltas. Matters for three deltas or more.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Which changes dare takes.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(block_presets()),
                    default=ALL_BLOCKS,
                    tooltip="Parts of the model to merge; the others are left out. SDXL style and SDXL composition "
                    "are the attention blocks said to hold them.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    multiline=True,
                    tooltip="Factors for parts of the model, a line each: input_blocks = 0.5. The last line that fits "
                    "a weight's name counts. With commas each delta has its own: output_blocks = 1, 0.",
                ),
            ],
            outputs=[
                SaraDelta.Output(display_name="delta", tooltip="The merged delta, to apply, bake or save."),
                io.String.Output(display_name="report", tooltip="Overlaps, opposite signs and shares as text."),
                io.Image.Output(display_name="picture", tooltip="The same as a picture."),
            ],
        )

    @classmethod
    def validate_inputs(cls, deltas=None, weights=None, keep=None, blocks=None):  # the host hands in what grows, too
        try:
            _numbers(weights or "1")
            parse_blocks(blocks or "")
        except DeltaError as error:
            return str(error)
        return refusal(cls, keep=keep)

    @classmethod
    @checked_inputs
    def execute(cls, deltas, weights, method, keep, sign, seed, preset, blocks) -> io.NodeOutput:
        connected = {name: delta for name, delta in deltas.items() if delta is not None}
        settings = MergeSettings(method, keep / 100, sign, seed, (*block_presets()[preset], *parse_blocks(blocks)))
        names = [_title(delta, name) for name, delta in connected.items()]
        merged, report = merge_with_report(list(connected.values()), _numbers(weights), settings, names)
        text = report.text()
        show_text(cls, text.splitlines()[0])
        picture = merge_picture(report).image()
        return io.NodeOutput(merged, text, picture, ui=ui.PreviewImage(picture, cls=cls))


def _title(delta, socket: str) -> str:
    """What people know the delta by: its title, or the run that gave it."""
    title = delta.metadata.get(modelspec.TITLE, "").strip()
    if not title and (run := unsaved.run_of(delta)):
        title = f"unsaved delta of {run}"
    return f"{title} ({socket})" if title else socket


def _numbers(text: str) -> list[float] | float:
    try:
        numbers = read_list(text, "a weight")
    except DeltaError as error:
        raise DeltaError(
            f"The weights '{text}' are not numbers with commas between them ({str(error).rstrip('.')}). Write them "
            "like 0.6, -0.4."
        ) from error
    return numbers[0] if len(numbers) == 1 else numbers
