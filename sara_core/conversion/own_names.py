"""What a delta's weights are called by ComfyUI and by diffusers, before it is written for a program that has either."""

import os
from collections.abc import Mapping

from ..delta import SparseDelta, SparseEntry
from ..delta import metadata as keys
from ..delta.text_part import split
from ..delta.translate import to_comfy, to_diffusers
from ..errors import DeltaError
from ..models.base import opened_base
from ..names.diffusers import check_known, is_diffusers, parts_in
from ..names.families import FAMILIES, Family, family_of
from ..names.family_names import layout_name
from ..names.resolve import prefix_of
from ..wording import listed


class OwnNames:
    """A delta's entries by either name, without a prefix; text encoders' have the same names on both sides.

    family: of its model, as its base, its metadata or its names tell; None if it is not known
    """

    def __init__(self, delta: SparseDelta, base_path: str | os.PathLike | None):
        """delta: by either side's names; base_path: of the model that it is for, if one was given.

        Raises DeltaError if the base is no model, or not the delta's; or if, without one, the names do not tell what
        they belong to.
        """
        of_model, of_text = split(delta)
        prefix = prefix_of(of_model.entries)
        self._entries: Mapping[str, SparseEntry] = {
            name.removeprefix(prefix): entry for name, entry in of_model.entries.items()
        }
        self._of_text = of_text.entries
        self._has_base = base_path is not None
        shapes = {name: entry.shape for name, entry in self._entries.items()}
        if self._has_base:
            with opened_base(base_path) as base:
                check_known(self._entries, base.shapes.keys() | base.diffusers_shapes.keys())
                shapes = base.shapes
        said = None if self._has_base else FAMILIES.get(layout_name(delta.metadata.get(keys.FAMILY, "")))
        self.family: Family | None = said or family_of(shapes, whole=self._has_base)
        self._parts = parts_in(self.family, shapes)

    def comfyui(self) -> Mapping[str, SparseEntry]:
        """ComfyUI's name → entry."""
        return {**(to_comfy(self._entries, self._parts) if self._are_diffusers else self._entries), **self._of_text}

    def diffusers(self) -> Mapping[str, SparseEntry]:
        """diffusers' name → entry; the same as ComfyUI's where the family has one name for both, or is not known.

        Raises DeltaError for weights that have no known name in diffusers.
        """
        if self._are_diffusers or self.family is None or self.family.names is None:
            return {**self._entries, **self._of_text}
        if unknown := self._entries.keys() - {part.name for part in self._parts.values()}:
            more = "" if self._has_base else " Give the base model, whose other weights may tell."
            raise DeltaError(f"What {listed(unknown)} is called in diffusers is not known.{more}")
        return {**to_diffusers(self._entries, self._parts), **self._of_text}

    @property
    def _are_diffusers(self) -> bool:
        return is_diffusers(self._entries, self._parts)
