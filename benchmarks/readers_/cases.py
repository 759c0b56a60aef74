"""Small models of the families, a delta of each in everything that it has, and what a reader should make of a file."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from sara_core.conversion.dense.programs import PROGRAMS
from sara_core.conversion.write import write_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.entry import dense
from sara_core.delta.translate import to_diffusers
from sara_core.names.diffusers import diffusers_parts
from sara_core.names.families import FAMILIES
from sara_core.names.text_encoders import is_of_text_encoder
from tests.support import tiny_diffusers

from .text_encoders import own_weights, text_encoders

# Text widths by which InvokeAI tells SD1.5 from SDXL.
FAMILIES_TRIED: dict[str, Callable[[], torch.nn.Module]] = {
    "SD1.5": lambda: _unet(tiny_diffusers.UNET, 768),
    "SDXL": lambda: _unet(tiny_diffusers.SDXL, 2048),
    "SD3": tiny_diffusers.sd3,
    "Flux": tiny_diffusers.flux,
    "Flux.2": tiny_diffusers.flux2,
    "Wan 2.1": tiny_diffusers.wan,
    "Z-Image": tiny_diffusers.z_image,
    "Qwen-Image": tiny_diffusers.qwen_image,
}
# The same with text encoders: title → family.
WITH_TEXT = {
    "SD1.5 with CLIP-L": "SD1.5",
    "SDXL with CLIP-L, CLIP-G": "SDXL",
    "SD3 with CLIP-L, CLIP-G, T5-XXL": "SD3",
    "Flux with CLIP-L, T5-XXL": "Flux",
}
# More than any layer's own: then a LoRA loses nothing but what float16 rounds.
RANK = 4096
NEAR = 2e-3
# Changes of a weight of a text encoder, which is as wide as the real one: the factors of many would take minutes.
MOST_OF_TEXT = 400
_LEFT_OUT = re.compile(r"^Left out, because .*?: ([\d,]+) ", re.MULTILINE)


@dataclass
class Case:
    """A model of one family, and a delta of it.

    model: in diffusers; comfyui: the weights by ComfyUI's names, without a prefix; delta: by these names
    encoders: encoder → its model, of the text encoders that the delta changes too
    changes: diffusers' name → dense change; comfyui_changes: the same by ComfyUI's names; in both, text encoders' by
        the delta's
    """

    family: str
    model: torch.nn.Module
    comfyui: dict[str, torch.Tensor]
    delta: SparseDelta
    encoders: dict[str, torch.nn.Module] = field(default_factory=dict)

    @property
    def comfyui_changes(self) -> dict[str, torch.Tensor]:
        return {name: dense(entry) for name, entry in self._entries.items()}

    @property
    def changes(self) -> dict[str, torch.Tensor]:
        parts = diffusers_parts({name: tuple(weight.shape) for name, weight in self.comfyui.items()})
        of_text = {name: entry for name, entry in self._entries.items() if is_of_text_encoder(name)}
        of_model = {name: entry for name, entry in self._entries.items() if name not in of_text}
        entries = to_diffusers(of_model, parts) if parts else of_model
        return {name: dense(entry) for name, entry in {**entries, **of_text}.items()}

    @property
    def text(self) -> dict[str, torch.Tensor]:
        """The text encoders' weights by the delta's names."""
        return {
            name: weight for encoder, model in self.encoders.items()
            for name, weight in own_weights(encoder, model).items()
        }  # fmt: skip

    @property
    def _entries(self) -> dict[str, SparseEntry]:
        return {name.removeprefix("diffusion_model."): entry for name, entry in self.delta.entries.items()}

    def save(self, folder: Path) -> None:
        """Model and weights, where the readers in environments of their own find them."""
        self.model.save_pretrained(folder / "diffusers")
        save_file({name: weight.contiguous() for name, weight in self.comfyui.items()}, folder / "comfyui.safetensors")
        save_file({name: weight.contiguous() for name, weight in self.text.items()}, folder / "text.safetensors")
        for encoder, model in self.encoders.items():
            model.save_pretrained(folder / encoder)


def make_case(family: str, folder: Path, share: float = 0.01) -> Case:
    """family: or a title of WITH_TEXT; folder: for the model's files, which are removed again"""
    from sara_core.models.base import opened_base

    encoders = text_encoders(WITH_TEXT[family]) if family in WITH_TEXT else {}
    family = WITH_TEXT.get(family, family)
    model = FAMILIES_TRIED[family]()
    place = "unet" if isinstance(model, diffusers.UNet2DConditionModel) else "transformer"
    model.save_pretrained(folder / place)
    with opened_base(folder) as base:
        weights = {name.removeprefix("diffusion_model."): w.clone() for name, w in base.weights().items()}
    case = Case(family, model, weights, SparseDelta({}, {"sara.family": family}), encoders)
    generator = torch.Generator().manual_seed(0)
    named = {f"diffusion_model.{name}": weight for name, weight in weights.items()} | case.text
    for name, weight in named.items():
        if name == "diffusion_model.pos_embed":  # a buffer, which nobody changes
            continue
        count = math.ceil(share * weight.numel())
        if is_of_text_encoder(name):
            count = min(count, MOST_OF_TEXT)
        chosen = torch.randperm(weight.numel(), generator=generator)[:count].sort().values.to(torch.int32)
        values = torch.randn(count, generator=generator) * 0.1
        case.delta.entries[name] = SparseEntry(chosen, values, tuple(weight.shape))
    return case


def _unet(config: dict, text_width: int) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**config, "cross_attention_dim": text_width}).eval()


def in_diffusers_names(reader: str, family: str) -> bool:
    """Whether the model in which the reader puts a LoRA has diffusers' names, else ComfyUI's."""
    return PROGRAMS[reader].layout(FAMILIES[family]).in_diffusers_names


def exported(case: Case, reader: str, path: Path) -> str:
    """Write the LoRA that the reader takes; returns the report. Raises DeltaError for a family it does not take."""
    return write_delta(case.delta, path, "lora", rank=RANK, reader=reader)


def judged(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], report: str) -> dict:
    """What became of the delta: `layers` that arrived, the largest relative `error` of one, how many are `missing`, and
    what is `wrong`: changed otherwise, missing without the report's saying so, or changed though the delta does not.

    expected: name → change in the delta; found: the same in the reader's model, of every parameter that changed
    """
    errors, missing, wrong = {}, [], sorted(found.keys() - expected.keys())
    for name, change in expected.items():
        if name not in found:
            missing.append(name)
            continue
        error = float((found[name].float() - change).norm() / change.norm())
        errors[name] = error
        if error > NEAR:
            wrong.append(f"{name}: {error:.2f}")
    said = sum(int(number.replace(",", "")) for number in _LEFT_OUT.findall(report))
    if said != len(missing):
        wrong.append(f"{len(missing)} missing, {said} said")
    return {"layers": len(errors), "error": max(errors.values(), default=0.0), "missing": len(missing), "wrong": wrong}


def changes_between(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name → change, of each parameter that is another one afterwards."""
    return {name: after[name] - old for name, old in before.items() if not torch.equal(after[name], old)}


def read_changes(path: Path) -> dict:
    """What a reader in its own environment has written: {"changes": …} or {"error": …}."""
    said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return said if "error" in said else {**said, "changes": load_file(path)}
