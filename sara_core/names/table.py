"""Parameter names by a table of modules, as transformers need them, whose blocks are all alike.

Where ComfyUI keeps several of diffusers' parameters in one weight, each is a part of its rows.
"""

import re
from collections.abc import Container, Mapping

from .parts import Part

Table = Mapping[str, Part]
# The first number of a name; in a block it is the block's.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def name_table(ends: Mapping[str, str | tuple], **blocks: tuple[str, Mapping[str, str | tuple]]) -> dict[str, Part]:
    """diffusers module → its place, with "{}" for a block's number.

    ends: outside of the blocks, diffusers module → ComfyUI's module, or a Part's (name, first, size, whole, swapped)
    blocks: diffusers' name for the blocks of a kind → (ComfyUI's, modules inside a block as in `ends`)
    """
    table = {theirs: _part("", place) for theirs, place in ends.items()}
    for their_block, (block, modules) in blocks.items():
        table |= {f"{their_block}.{{}}.{theirs}": _part(f"{block}.{{}}.", place) for theirs, place in modules.items()}
    return table


def _part(block: str, place: str | tuple) -> Part:
    name, *rest = (place,) if isinstance(place, str) else place
    return Part(block + name, *rest)


def split_name(name: str, modules: Container[str]) -> tuple[str, str, str] | None:
    """The one of `modules` that a parameter is in, with "{}" for the block's number; that number, which is empty
    outside of the blocks; and the parameter's own name. None if there is no such module."""
    module, _, parameter = name.rpartition(".")
    found = _NUMBER.search(module)
    template = _NUMBER.sub("{}", module, count=1)
    if found and template in modules:
        return template, found[0], parameter
    return (module, "", parameter) if module in modules else None


def renamed_parameter(name: str, parameters: Mapping[str, str]) -> str | None:
    """What a parameter is called on the other side, if its whole name, with "{}" for a block's number, is in
    `parameters`; None if it is not."""
    if name in parameters:
        return parameters[name]
    found = _NUMBER.search(name)
    other = parameters.get(_NUMBER.sub("{}", name, count=1)) if found else None
    return None if other is None else other.format(found[0])


class TableNames:
    """Translates names of a model whose modules are in a table (`name_table`); `shapes`: some or all of its
    parameters', in either naming; `parameters`: diffusers' whole name → ComfyUI's, of those that the two sides have in
    different modules, or in none, with "{}" for a block's number."""

    def __init__(self, table: Table, shapes: Mapping[str, tuple[int, ...]], parameters: Mapping[str, str] = {}):
        self._table, self._shapes = table, shapes
        self._parameters, self._parameters_back = parameters, {own: theirs for theirs, own in parameters.items()}
        self._inverse: dict[str, list[str]] = {}
        for theirs, part in table.items():
            self._inverse.setdefault(part.name, []).append(theirs)

    def to_comfy(self, name: str) -> Part | None:
        """The place of a diffusers parameter, or None for a name that this model cannot have."""
        if (whole := renamed_parameter(name, self._parameters)) is not None:
            return Part(whole)
        found = split_name(name, self._table)
        return None if found is None else self._placed(*found, name)

    def to_diffusers(self, name: str) -> dict[str, Part]:
        """The diffusers parameters that make up a parameter; empty for a name that this model cannot have."""
        if (whole := renamed_parameter(name, self._parameters_back)) is not None:
            return {whole: Part(name)}
        found = split_name(name, self._inverse)
        if found is None:
            return {}
        template, number, parameter = found
        return {
            f"{theirs.format(number)}.{parameter}": self._placed(theirs, number, parameter, name)
            for theirs in self._inverse[template]
        }

    def knows_all(self) -> bool:
        """Whether every one of `shapes` is a name of one side."""
        return all(self.to_comfy(name) for name in self._shapes) or all(map(self.to_diffusers, self._shapes))

    def _placed(self, template: str, number: str, parameter: str, name: str) -> Part:
        part = self._table[template]
        swapped = part.swapped or self._is_swapped(template, number, name)
        return part._replace(name=f"{part.name.format(number)}.{parameter}", swapped=swapped)

    def _is_swapped(self, template: str, number: str, name: str) -> bool:
        """Whether the halves of a module change places in this block, where the table does not say so of all."""
        return False
