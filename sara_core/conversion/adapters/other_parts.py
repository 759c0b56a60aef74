"""What of an adapter file a delta does not hold: modules of text encoders and others, and what a trainer left there."""

import re
from collections.abc import Collection, Iterable

from ...names.wrapping import without_prefix
from ...wording import counted, listed
from ..peft import PREFIX

_TEXT, _VAE, _CONTROL = "of the text encoder", "of the VAE", "of a control net"
_BEFORE = rf"({re.escape(PREFIX)})?((lora|lycoris)_)?"
# Trainers write `lora_te1_`, `text_encoder_2.`, `text_encoders.qwen3_4b.`, `clip_l.` … A name that the base has is
# never looked at here, so these may be wide.
_PARTS = {
    _TEXT: re.compile(
        _BEFORE + r"((prior_)?te\d*[_.]|text_?(encoder|model)|clip|(u?m|by)?t5|llama|llava|llm|qwen\d|gemma"
        r"|mistral|hydit_clip|bert|cond_stage_model\.|conditioner\.)"
    ),
    _VAE: re.compile(_BEFORE + r"(vae|first_stage_model|autoencoder)[_.]"),
    _CONTROL: re.compile(_BEFORE + r"control(_?net|_model)?[_.]"),
}
# Left out only where they hold no changes: see remainder.py.
_REMAINDERS = (".bias_indices", ".bias_values", ".bias_size")
# A block's name: all up to the last number that something follows, as in `blocks.7` or `down_blocks_1_attentions_0`.
_BLOCK = re.compile(r"(.*[._]\d+)[._].+")


def part_of(name: str) -> str | None:
    """Which other part of a pipeline a module belongs to, by its name in the file; None if the name tells of none."""
    return next((part for part, names in _PARTS.items() if names.match(name)), None)


def in_foreign_blocks(missing: Iterable[str], known: Collection[str]) -> list[str]:
    """Those of the modules that the base lacks whose blocks it lacks too: they are another model's.

    missing: by their names in the file; known: all names that the base's modules may have there
    """
    blocks = {found[1] for name in known if (found := _BLOCK.fullmatch(name))}
    return [name for name in missing if (found := _BLOCK.fullmatch(without_prefix(name))) and found[1] not in blocks]


def only(names: Collection[str]) -> str:
    """What modules that are all of other parts are, for an error message."""
    parts = sorted({part_of(name).removeprefix("of ") for name in names})
    return "text encoders" if parts == [_TEXT.removeprefix("of ")] else " and ".join(parts)


def report(left_out: Collection[str], label: str) -> list[str]:
    """A line for people on each kind of what was left out. label: the base's"""
    lines = []
    others = [name for name in left_out if not name.endswith(_REMAINDERS)]
    if len(others) < len(left_out):
        lines.append(
            "Left out: sparse remainders beside Tucker cores, in which LyCORIS saves values of the tuned weights and "
            "no changes."
        )
    for part in _PARTS:
        if names := [name for name in others if part_of(name) == part]:
            others = [name for name in others if name not in set(names)]
            lines.append(f"Left out: {len(names)} modules {part} ({listed(names)}).")
    if others:
        lines.append(
            f"Left out, because '{label}' has no place for them: {counted(len(others), 'part')} of the file "
            f"({listed(others)})."
        )
    return lines
