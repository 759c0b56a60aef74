"""Whether parameters are those of SD3, Flux or Flux.2: of a whole model by everything that a model of the family must
have, of a few layers by names that no other family has.

A few shared names say nothing: dozens of families call a layer `transformer_blocks.0.attn2.to_q` or
`double_blocks.0.img_attn.qkv`, and most of them have no table here.
"""

from collections.abc import Callable, Collection, Mapping

from ..errors import DeltaError
from .table import Table, split_name
from .transformer import FLUX, FLUX2, SD3, SD3_PARAMETERS

Shapes = Mapping[str, tuple[int, ...]]

# Image prompts hang on the attention's processor.
_HOOK = ".processor."
# Flux.2's MLPs are gated: twice as wide as their width says, which is three times the model's.
_GATED = {"double_blocks.{}.img_mlp.0": 6, "double_blocks.{}.txt_mlp.0": 6, "single_blocks.{}.linear1": 9}
# Layers for the text in a block: whoever has those and no single blocks is SD3, if it has one of the others, too.
_FOR_TEXT = (".add_", ".to_add_", ".norm_added_", "norm1_context.", "ff_context.", "context_embedder.", "joint_blocks.")
_OF_FLUX2 = ("double_stream_modulation_", "single_stream_modulation.")
_OF_SD3 = ("pos_embed", ".attn2.", "joint_blocks.")


class Layout:
    """How the models of one table look.

    table: of all modules that they may have; optional: those of diffusers' that not every one has, by what is in them
    bare: whole names of parameters outside of the modules, in either naming
    """

    def __init__(self, table: Table, optional: Collection[str], bare: Collection[str] = ()):
        self._bare = frozenset(bare)
        needed = [module for module in table if not any(words in module for words in optional)]
        sides = (needed, [table[module].name for module in needed])
        self._needed = [[f"{module.format(0)}.weight" for module in side] for side in sides]
        self._known = table.keys() | {part.name for part in table.values()}
        self._blocks = tuple({f"{module.partition('.{}.')[0]}." for module in self._known if "{}" in module})

    def has_all(self, shapes: Shapes) -> bool:
        """Whether parameters, in either naming, have everything that a model of this layout must have, and nothing else
        in its blocks."""
        in_blocks = (name for name in shapes if name.startswith(self._blocks))
        return self.has_needed(shapes) and all(self.knows(name) or self._is_added(name) for name in in_blocks)

    def has_needed(self, shapes: Shapes) -> bool:
        """Whether parameters, in either naming, have everything that a model of this layout must have."""
        return any(all(name in shapes for name in side) for side in self._needed)

    def has_only(self, shapes: Shapes) -> bool:
        """Whether models of this layout have all of these parameters, in either naming, and one is not in many."""
        return all(map(self.knows, shapes)) and any(name.startswith((*self._blocks, *_OF_FLUX2)) for name in shapes)

    def knows(self, name: str) -> bool:
        """Whether models of this layout have a parameter of this name, in either naming."""
        return name in self._bare or split_name(name, self._known) is not None

    def _is_added(self, name: str) -> bool:
        """Whether a parameter is of something that was put into a model: a hook, or what hangs on one of its layers."""
        words = name.split(".")
        return _HOOK in name or any(self.knows(".".join(words[:end])) for end in range(3, len(words)))


# A model of one block has no MLP for the text in it.
SD3_LAYOUT = Layout(
    SD3, (".norm_", ".attn2.", ".to_add_out", ".ff_context."), {"pos_embed", *SD3_PARAMETERS}
)  # fmt: skip
FLUX_LAYOUT = Layout(FLUX, (".norm_", ".guidance_embedder."))
FLUX2_LAYOUT = Layout(FLUX2, (".norm_", ".guidance_embedder."))
_LAYOUTS = (SD3_LAYOUT, FLUX_LAYOUT, FLUX2_LAYOUT)


def is_of(layout: Layout) -> Callable[[Shapes], bool]:
    """Whether parameters (name → shape), in either naming, are those of a model of this layout, or some of them.

    Raises DeltaError for a few layers that models of several families have.
    """

    def is_of_layout(shapes: Shapes) -> bool:
        if any(one.has_needed(shapes) for one in _LAYOUTS):
            return layout.has_all(shapes)
        return _layout_of_some(shapes) is layout

    return is_of_layout


def _layout_of_some(shapes: Shapes) -> Layout | None:
    """The layout of a few parameters, whose names are all there is to tell it by; None for one that is not known.

    Raises DeltaError if the names do not tell.
    """
    fitting = [layout for layout in _LAYOUTS if layout.has_only(shapes)]
    if SD3_LAYOUT not in fitting:
        gated = FLUX2_LAYOUT in fitting and any(_is_gated(name, shape) for name, shape in shapes.items())
        return FLUX2_LAYOUT if gated else next(iter(fitting), None)
    if len(fitting) == 1 and all(any(part in name for name in shapes for part in of) for of in (_FOR_TEXT, _OF_SD3)):
        return SD3_LAYOUT
    raise DeltaError(
        "These layers exist in models of several families, such as SD3 and Flux. Give the base model they belong to."
    )


def _is_gated(name: str, shape: tuple[int, ...]) -> bool:
    found = split_name(name, _GATED)
    return found is not None and len(shape) == 2 and shape[0] == _GATED[found[0]] * shape[1]
