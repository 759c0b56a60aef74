"""The programs that LoRAs are written for, and what each takes of one: names, factors, ranks, layers.

What is said of a program here was tried in it: `python dev.py bench readers`, docs/conversion.md.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ...errors import DeltaError
from ...names.families import Family
from ...names.text_encoders import (
    CLIP_G, CLIP_H, CLIP_L, T5_XXL, TEXT_PREFIX, encoder_of, is_of_text_encoder,
)  # fmt: skip
from ...wording import one_of

COMFYUI = "comfyui"
# On which layers of text encoders the others train LoRAs; T5's attention has a table of biases beside them.
_TEXT_LAYERS = re.compile(
    r"\.encoder\.(layers\.\d+\.(self_attn|mlp)|block\.\d+\.layer\.\d\.(SelfAttention|DenseReluDense))"
    r"\.(?!relative_attention_bias)\w+$"
)
_KOHYA, _PEFT = ("lora_down", "lora_up"), ("lora_A", "lora_B")


@dataclass(frozen=True)
class Layout:
    """What a program wants a LoRA for models of one family to be.

    prefix: before a layer's name; is_flat: whether the dots of that name are underscores
    in_diffusers_names: the layers'; else they have ComfyUI's
    factors: what the two are called, the one that the input meets first; is_scaled: whether each layer has an alpha;
        programs apply a layer without one as it is
    has_one_rank: for all layers, because the program has one alpha for all
    keeps_differences: whether it takes what a LoRA cannot hold (biases, norms) as plain differences
    layers: pattern of the layers that it looks for, by their names without prefix
    marks: patterns, of each of which a layer must be there, because they tell the program what the file is for
    misleading: pattern of layers by which it takes the file for another family's, where they come before a mark
    text: of each text encoder whose LoRAs it takes, what it puts before a layer's name; the dots of that name are
        underscores where this ends in one. None: it takes those of all under a delta's names
    """

    prefix: str
    is_flat: bool = False
    in_diffusers_names: bool = True
    factors: tuple[str, str] = _PEFT
    is_scaled: bool = False
    has_one_rank: bool = False
    keeps_differences: bool = False
    layers: str = ""
    marks: tuple[str, ...] = ()
    misleading: str | None = None
    text: Mapping[str, str] | None = field(default_factory=dict)

    def key(self, layer: str) -> str:
        """What a file calls the layer of this name."""
        if is_of_text_encoder(layer):
            return layer if self.text is None else self._text_key(layer)
        return self.prefix + (layer.replace(".", "_") if self.is_flat else layer)

    def looks_for(self, layer: str) -> bool:
        """Whether the program has a place for a LoRA of this layer."""
        if is_of_text_encoder(layer):
            return self.text is None or encoder_of(layer) in self.text and _TEXT_LAYERS.search(layer) is not None
        return re.match(self.layers, layer) is not None

    def _text_key(self, layer: str) -> str:
        encoder = encoder_of(layer)
        before, module = self.text[encoder], layer.removeprefix(f"{TEXT_PREFIX}{encoder}.transformer.")
        return before + (module.replace(".", "_") if before.endswith("_") else module)

    def misleading_of(self, layers: Collection[str]) -> set[str]:
        """Those of the layers that must not be in a file with the others. Files have their layers in alphabetical
        order."""
        if self.misleading is None:
            return set()
        in_file = sorted(layers, key=self.key)
        first = next((place for place, layer in enumerate(in_file) if re.search(self.marks[0], layer)), len(in_file))
        return {layer for layer in in_file[:first] if re.search(self.misleading, layer)}

    def is_recognised(self, layers: Collection[str]) -> bool:
        """Whether the program sees what a file with these layers is for."""
        return all(any(re.search(mark, layer) for layer in layers) for mark in self.marks)


@dataclass(frozen=True)
class Program:
    """One that loads LoRAs.

    title: what its people call it
    layouts: what it wants for each family, by name; None is a UNet in SD's layout that is of none of the families
    others: what it wants for any other family, and for models of none; None if it takes no LoRAs for these
    """

    title: str
    layouts: Mapping[str | None, Layout] = field(default_factory=dict)
    others: Layout | None = None

    def layout(self, family: Family | None) -> Layout:
        """What it wants for the family, None being one that is not known. Raises DeltaError if it takes no LoRAs for
        it."""
        layout = self.others if family is None else self.layouts.get(family.name, self.others)
        if layout is not None:
            return layout
        taken = one_of(name for name in self.layouts if name)
        if family is None or family.name is None:
            raise DeltaError(
                f"Which family of models the delta is for is not known, and {self.title} needs other names for each: "
                f"give the base model, if it is one of {taken}."
            )
        raise DeltaError(
            f"LoRAs for {family.name} are not taken by {self.title}, only those for {taken}. "
            "Choose another program to write it for."
        )


_UNETS = ("SD1.5", "SD2.1", "SDXL", "SDXL Refiner", "SSD-1B", "Segmind Vega", "KOALA 700M", "KOALA 1B", None)
_TRANSFORMERS = ("SD3", "Flux", "Flux.2", "Wan 2.1", "Wan 2.2", "Z-Image", "Qwen-Image")

_FLAT = Layout("lora_unet_", is_flat=True, factors=_KOHYA, is_scaled=True)
# A weight of rows that are picked by number; Qwen-Image's models of several layers have one.
_NO_EMBEDDING = r"(?!.*addition_t_embedding)"
_FLAT_COMFYUI = replace(_FLAT, in_diffusers_names=False)

# It sees by the width of the text's keys and values which UNet a file is for, and takes any other first layer of a
# certain name for SDXL's. Flux and Flux.2 it tells by the first blocks, and of Wan it has a place for blocks only.
_TEXT_KEYS = r"\.attn2\.to_[kv]$"
_INVOKEAI_SD = replace(_FLAT, marks=(_TEXT_KEYS,), misleading=r"\.time_emb_proj$")
_INVOKEAI = {
    "SD1.5": _INVOKEAI_SD,
    "SD2.1": _INVOKEAI_SD,
    "SDXL": replace(_FLAT, marks=(_TEXT_KEYS + r"|\.time_emb_proj$|\.transformer_blocks\.[2-9]\.",)),
    "Flux": Layout("diffusion_model.", in_diffusers_names=False, marks=(r"^(double|single)_blocks\.",)),
    "Flux.2": Layout(
        "transformer.",
        marks=(
            r"\.(to_qkv_mlp_proj|linear_in)$",
            r"^(context_embedder|single_transformer_blocks\.0\.attn\.to_qkv_mlp_proj|transformer_blocks\.0\.ff\.linear_in)$",
        ),
    ),
    **dict.fromkeys(
        ("Wan 2.1", "Wan 2.2"), Layout("transformer.", layers=r"blocks\.", marks=(r"\.(attn[12]|ffn)\.",))
    ),
    "Z-Image": Layout("diffusion_model.", marks=(r"^(layers|noise_refiner|context_refiner)\.",)),
    "Qwen-Image": Layout("transformer.", layers=_NO_EMBEDDING, marks=(r"^transformer_blocks\.",)),
}  # fmt: skip

# It puts LoRAs on the layers of blocks and, of SD3 and Flux, on those of the inputs. SDXL's UNet it has written anew,
# with the original names.
_KOHYA_PROGRAMS = {
    **dict.fromkeys(("SD1.5", "SD2.1"), replace(_FLAT, layers=r"(down|mid|up)_block")),
    "SDXL": replace(_FLAT_COMFYUI, layers=r"input_blocks\.(?!0\.)|middle_block\.|output_blocks\."),
    "SD3": _FLAT_COMFYUI,
    "Flux": replace(_FLAT_COMFYUI, layers=r"(double|single)_blocks\.|(img|time|vector|guidance|txt)_in\b"),
    "Flux.2": replace(_FLAT_COMFYUI, layers=r"(double|single)_blocks\."),
    **dict.fromkeys(("Wan 2.1", "Wan 2.2"), replace(_FLAT_COMFYUI, layers=r"blocks\.")),
    "Z-Image": replace(_FLAT, layers=r"(layers|noise_refiner|context_refiner)\."),
    "Qwen-Image": replace(_FLAT, layers=r"transformer_blocks\."),
}


def _with_text(layouts: Mapping[str | None, Layout], encoders: Mapping[str, Mapping[str, str]]) -> dict:
    """The layouts of a program with what it puts before layers of text encoders. encoders: family → encoder → that"""
    return {family: replace(layout, text=encoders.get(family, {})) for family, layout in layouts.items()}


_TWO = {CLIP_L: "text_encoder.", CLIP_G: "text_encoder_2."}
_DIFFUSERS_TEXT = {
    "SD1.5": {CLIP_L: "text_encoder."},
    "SD2.1": {CLIP_H: "text_encoder."},
    "SDXL Refiner": {CLIP_G: "text_encoder_2."},
    **dict.fromkeys(("SDXL", "SSD-1B", "Segmind Vega", "KOALA 700M", "KOALA 1B", "SD3"), _TWO),
    "Flux": {CLIP_L: "text_encoder."},
}
_KOHYA_SD_TEXT = {
    "SD1.5": {CLIP_L: "lora_te_"},
    "SD2.1": {CLIP_H: "lora_te_"},
    "SDXL": {CLIP_L: "lora_te1_", CLIP_G: "lora_te2_"},
}
_KOHYA_TEXT = {
    **_KOHYA_SD_TEXT,
    "SD3": {CLIP_L: "lora_te1_", CLIP_G: "lora_te2_", T5_XXL: "lora_te3_"},
    "Flux": {CLIP_L: "lora_te1_", T5_XXL: "lora_te3_"},
}

PROGRAMS: dict[str, Program] = {
    COMFYUI: Program("ComfyUI", others=replace(_FLAT_COMFYUI, keeps_differences=True, text=None)),
    "diffusers": Program(
        "diffusers",
        _with_text(
            {
                **dict.fromkeys(_UNETS, Layout("unet.", has_one_rank=True)),
                **dict.fromkeys(_TRANSFORMERS, Layout("transformer.", has_one_rank=True, layers=_NO_EMBEDDING)),
            },
            _DIFFUSERS_TEXT,
        ),
    ),
    "invokeai": Program("InvokeAI", _with_text(_INVOKEAI, _KOHYA_SD_TEXT)),
    "kohya": Program("kohya's sd-scripts and musubi-tuner", _with_text(_KOHYA_PROGRAMS, _KOHYA_TEXT)),
}
