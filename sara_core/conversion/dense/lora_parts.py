"""What of a delta goes where in a LoRA: into factors, as plain differences, or, for some programs, nowhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...delta import SparseEntry
from ...names.resolve import PREFIX, WEIGHT
from ...tensors.elements import sum_of_squares
from ...wording import listed
from .diff import host_names
from .programs import Layout


@dataclass
class LoraParts:
    """A delta's entries, each where it goes.

    layout: of the file; layers: weight name → entry, of those that become factors
    differences: the same of those that are written as they are
    no_layer, not_looked_for, misleading: of those that are left out: what is no layer's weight, what the program has
        no place for, and what would make it take the file for another family's
    """

    layout: Layout
    layers: dict[str, SparseEntry] = field(default_factory=dict)
    differences: dict[str, SparseEntry] = field(default_factory=dict)
    no_layer: dict[str, SparseEntry] = field(default_factory=dict)
    not_looked_for: dict[str, SparseEntry] = field(default_factory=dict)
    misleading: dict[str, SparseEntry] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be written."""
        return not (self.layers or self.differences)

    @property
    def left_out(self) -> dict[str, SparseEntry]:
        """All that is not written."""
        return self.no_layer | self.not_looked_for | self.misleading

    def left_out_lines(self, title: str) -> list[str]:
        """What is left out and why, for people, with its share of the squared change. title: of the program"""
        all_squares = sum(squares_of(part) for part in (self.layers, self.differences, self.left_out))
        reasons = (
            (self.no_layer, f"biases, norms and the like are not taken by {title}"),
            (self.not_looked_for, f"LoRAs of these layers are not taken by {title}"),
            (self.misleading, f"with these layers the file would be taken for SDXL's by {title}"),
        )
        return [
            f"Left out, because {why}: {len(part):,} with {squares_of(part) / all_squares:.2%} of the squared change "
            f"({listed(part)})."
            for part, why in reasons
            if part
        ]


def parts_of(entries: Mapping[str, SparseEntry], layout: Layout) -> LoraParts:
    """What of the entries goes where in a file of this layout; what changes nothing goes nowhere, if a program takes no
    plain differences.

    entries: weight name → entry; by ComfyUI's names with any of the known prefixes or none, or by diffusers'
    """
    lora = LoraParts(layout)
    named = entries if layout.in_diffusers_names else host_names(entries)
    for name, entry in named.items():
        is_changed = bool(sum_of_squares(entry.values))
        if name.endswith(WEIGHT) and len(entry.shape) > 1 and is_changed:
            (lora.layers if layout.looks_for(layer_of(name)) else lora.not_looked_for)[name] = entry
        elif layout.keeps_differences:
            lora.differences[name] = entry
        elif is_changed:
            lora.no_layer[name] = entry
    misleading = layout.misleading_of([layer_of(name) for name in lora.layers])
    lora.misleading = {name: entry for name, entry in lora.layers.items() if layer_of(name) in misleading}
    lora.layers = {name: entry for name, entry in lora.layers.items() if name not in lora.misleading}
    return lora


def layer_of(name: str) -> str:
    """The layer that a weight is of, by the layer's name without a prefix."""
    return name.removeprefix(PREFIX).removesuffix(WEIGHT)


def squares_of(entries: Mapping[str, SparseEntry]) -> float:
    """The sum of all squared changes."""
    return sum(sum_of_squares(entry.values) for entry in entries.values())
