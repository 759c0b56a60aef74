"""Adapters as a format: LoRA, LyCORIS, and the weight differences that ComfyUI writes."""

from ...delta.text_part import text_lines
from ...extraction.largest_changes import together
from ..foreign_file import ForeignFile
from ..formats import Reader, Sign
from ..peft import PREFIX, WEIGHT_FILES
from ..remedies import ADAPTER, CONVERT
from ..request import ReadRequest
from ..result import Conversion
from .file import opened_adapter
from .kinds import KINDS
from .modules import are_of_an_adapter
from .peft_settings import alphas_of


class AdapterReader(Reader):
    """All kinds of adapters that change.py knows: one file may hold several of them."""

    called = "A LoRA or weight difference"
    names = ("LoRA", "LyCORIS", ".diff")
    signs = (
        *(Sign(kind.called, CONVERT, within=kind.marks) for kind in KINDS),
        Sign("a LoRA", ADAPTER, (".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight",
                                 ".lora_A", ".lora_B", ".lora.up.weight", "_lora.up.weight", "_lora1.up.weight",
                                 ".lora_linear_layer.up.weight")),
        Sign("a LoHa or LoKr adapter (LyCORIS)", ADAPTER,
             (".hada_w1_a", ".hada_w1_b", ".lokr_w1", ".lokr_w1_a", ".lokr_w2")),
        Sign("an OFT or BOFT adapter", ADAPTER, (".oft_blocks",)),
        Sign("an IA³ adapter (LyCORIS)", CONVERT, (".on_input",)),
        Sign("a dense weight difference", ADAPTER, (".diff", ".diff_b", ".set_weight")),
        Sign("an adapter of PEFT", CONVERT, beginnings=(PREFIX,)),
    )  # fmt: skip
    takes_density = True
    files_in_folder = (*WEIGHT_FILES, "pytorch_lora_weights.safetensors")

    def recognises(self, file: ForeignFile) -> bool:
        """By more names than `signs` has, where a few of them together leave no doubt."""
        return are_of_an_adapter(file.names)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """The largest changes of the diffusion model, and of the text encoders' weights that the file changes.

        What there is no place for is left out by name.
        """
        alphas, notes = alphas_of(file.path, file.source)
        adapter = opened_adapter(file.source, request.base, alphas, request.reading)
        kept = request.keep_largest(adapter.changes, len(adapter.modules))
        if text := adapter.text.modules:
            kept = together([kept, request.keep_largest(adapter.text.changes, len(text), adapter.text.elements)])
        conversion = request.made(kept.entries, kept.lost)
        conversion.left_out = adapter.left_out
        conversion.notes += [*notes, *text_lines(conversion.delta), *adapter.notes(), *adapter.text.notes()]
        return conversion
