"""Factors for the blocks of a model as a person writes them: one line `words = factor` after another.

    * = 0
    output_blocks = 0.5
    attn, attention = 1, 0

A line holds for every weight in whose name one of its words occurs (a word with * or ? must match the whole name, as in
every pattern here). Of several lines that hold for a weight the last counts; where none does, the factor is 1. A factor
is for all deltas, or there is one for each, in their order.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..errors import DeltaError
from ..names import patterns
from ..names.families import FAMILIES
from ..names.patterns import Patterns, matches_name, split_patterns
from ..numbers import read_list
from ..wording import listed


class BlockFactor(NamedTuple):
    """Factors of the weights whose names one of the words matches.

    factors: one for all deltas, or one for each; must_fit: whether it is a mistake if no weight is matched
    """

    words: tuple[str, ...]
    factors: tuple[float, ...]
    must_fit: bool = True

    def __str__(self) -> str:
        return f"{', '.join(self.words)} = {', '.join(f'{factor:g}' for factor in self.factors)}"

    def fits(self, name: str) -> bool:
        """Whether the line holds for the weight `name`."""
        return any(matches_name(word, name) for word in self.words)


def _only(taken: Patterns) -> tuple[BlockFactor, ...]:
    lines = BlockFactor(("*",), (0.0,)), BlockFactor(taken.include, (1.0,))
    return (*lines, BlockFactor(taken.exclude, (0.0,), must_fit=False)) if taken.exclude else lines


ALL_BLOCKS = "all blocks"
_PRESETS = {
    ALL_BLOCKS: (),
    **{name: _only(patterns.PRESETS[name]) for name in ("attention only", "cross-attention only")},
    "input blocks": _only(Patterns(("input_blocks",))),
    "middle block": _only(Patterns(("middle_block",))),
    "output blocks": _only(Patterns(("output_blocks",))),
}


def block_presets() -> dict[str, tuple[BlockFactor, ...]]:
    """What people call parts of a model that are merged on their own → the lines. Those for one family come last."""
    own = {name: words for family in FAMILIES.values() for name, words in family.merge_presets.items()}
    return {**_PRESETS, **{name: _only(Patterns(words)) for name, words in own.items()}}


def parse_blocks(text: str) -> tuple[BlockFactor, ...]:
    """The lines of a text; what follows a # is a remark. Raises DeltaError for a line that cannot be understood."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(_parse(line) for line in lines if line)


def _parse(line: str) -> BlockFactor:
    words, _, factors = line.rpartition("=")
    try:
        block = BlockFactor(split_patterns(words), tuple(read_list(factors, "its factor")))
    except DeltaError as error:
        raise _not_understood(line, f" ({str(error).rstrip('.')})") from error
    if not block.words:
        raise _not_understood(line)
    return block


def _not_understood(line: str, why: str = "") -> DeltaError:
    return DeltaError(
        f"The block line '{line}' cannot be understood{why}. Write words, an equals sign and a number, like "
        "'output_blocks = 0.5'."
    )


def check_blocks(blocks: Sequence[BlockFactor], weights: Collection[str], deltas: int) -> None:
    """Raise DeltaError for a line that holds for none of the weights, or has factors for another number of deltas."""
    for block in blocks:
        if block.must_fit and not any(map(block.fits, weights)):
            raise DeltaError(
                f"The block line '{block}' fits none of the {len(weights)} weights that are changed here (they are "
                f"called like {listed(weights)}). Correct the line, or choose another preset."
            )
        if len(block.factors) not in (1, deltas):
            raise DeltaError(
                f"The block line '{block}' has {len(block.factors)} factors for {deltas} deltas. Write one for all, "
                "or one for each."
            )


def factors_of(name: str, blocks: Sequence[BlockFactor], deltas: int) -> tuple[float, ...]:
    """The factor of each delta at the weight `name`; `blocks` as checked."""
    for block in reversed(blocks):
        if block.fits(name):
            return block.factors * (deltas // len(block.factors))
    return (1.0,) * deltas
