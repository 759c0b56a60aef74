"""What there is to say of a training before it begins: what it will take, and what is odd about it.

All of it comes from settings, from what is known of the pictures, and from the header of the model's file; what is not
known is left out. Once the model is loaded, memory/estimate.py says the memory far better.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..delta.describe import file_size
from ..memory.expected import Expected, activations, expected_memory, latent_area
from ..names.outline import Outline
from ..wording import Sentence, counted_pictures, readable_size
from .disk import bytes_at_most
from .presets import GOALS, is_tiny, native_resolution, preset

# Bytes per element that AdamW keeps.
_MOMENTS = 8
# Of how often each picture is seen, and of how much a density differs from a preset's, what is odd.
_TOO_SELDOM, _TOO_OFTEN = 5, 500
_SMALL_PART, _LARGE_PART = 0.7, 1.6
_DENSITY_APART = 8


@dataclass(frozen=True)
class Plan:
    """A training's settings. amount: "density" (value: a share, 0 … 1), "count" or "threshold"; the rest as in
    settings.SETTINGS. trains_all_layers: whether no pattern leaves any out."""

    amount: str
    value: float
    steps: int
    batch_size: int
    grad_accumulation: int
    gradient_checkpointing: bool
    snapshot_every: int = 500
    snapshots_kept: int = 1
    trains_all_layers: bool = True


@dataclass(frozen=True)
class Pictures:
    """count: how many there are, without_caption and tiny among them; resolution: the side in pixels of the square that
    each is trained with as many pixels as. None for what is not known."""

    count: int | None = None
    without_caption: int | None = None
    tiny: int | None = None
    resolution: int | None = None


@dataclass(frozen=True)
class Machine:
    """bytes_a_number: what a model computes in; memory: bytes of the device that trains; free: bytes on the disk;
    seconds: of a step, and working: bytes of a forward and backward, of a training like this one before.
    None for what is not known."""

    bytes_a_number: int = 2
    memory: int | None = None
    free: int | None = None
    seconds: float | None = None
    working: int | None = None


class Foretold(NamedTuple):
    """trained: number of elements; delta, disk: bytes of the file, and of all that is written at once; memory: on the
    device; seconds: of the whole run. None for what is not known."""

    trained: int | None
    delta: int | None
    disk: int | None
    memory: Expected | None
    seconds: float | None
    doubts: list[Sentence]


def foretold(plan: Plan, model: Outline | None, pictures: Pictures, machine: Machine) -> Foretold:
    """What is known of a training. model: None where its file does not say what it is"""
    trained = _trained(plan, model)
    delta = disk = memory = None
    if model is not None and trained is not None:
        delta = file_size(trained, trained / model.trainable, model.weights)
        disk = bytes_at_most(trained, plan.steps, plan.snapshot_every, plan.snapshots_kept, _MOMENTS)
        memory = _memory(plan, model, trained, pictures, machine)
    seconds = None if machine.seconds is None else machine.seconds * plan.steps
    known = Foretold(trained, delta, disk, memory, seconds, [])
    return known._replace(doubts=list(_doubts(plan, model, pictures, machine, known)))


def _trained(plan: Plan, model: Outline | None) -> int | None:
    if plan.amount == "count":
        return int(plan.value)
    if plan.amount == "density" and model is not None and plan.trains_all_layers:
        return round(plan.value * model.trainable)
    return None  # how many are below a threshold, only the weights themselves say


def _memory(plan: Plan, model: Outline, trained: int, pictures: Pictures, machine: Machine) -> Expected:
    working = machine.working
    if working is None and pictures.resolution is not None and not is_tiny(model):
        area = latent_area(model.family, pictures.resolution**2)
        working = activations(model.family, area, plan.batch_size, plan.gradient_checkpointing, machine.bytes_a_number)
    return expected_memory(model.elements, trained, working, machine.bytes_a_number)


def _doubts(
    plan: Plan, model: Outline | None, pictures: Pictures, machine: Machine, known: Foretold
) -> Iterator[Sentence]:
    yield from _of_pictures(plan, pictures)
    if model is not None:
        yield from _of_model(plan, model, pictures)
    yield from _of_room(machine, known)


def _of_pictures(plan: Plan, pictures: Pictures) -> Iterator[Sentence]:
    if pictures.count == 0:
        yield Sentence("There are no pictures to learn from.")
        return
    if pictures.without_caption:
        yield Sentence(
            "{pictures} without a caption: what is in them is learned for every prompt alike. Write captions, or give "
            "a trigger word.", pictures=counted_pictures(pictures.without_caption),
        )  # fmt: skip
    if pictures.tiny:
        yield Sentence(
            "{pictures} much smaller than trained on, and blurred so: give larger ones, or lower the resolution.",
            pictures=counted_pictures(pictures.tiny),
        )
    if pictures.count is not None:
        seen = plan.steps * plan.batch_size * plan.grad_accumulation / pictures.count
        if seen < _TOO_SELDOM:
            yield Sentence(
                "Each picture is seen {times} times only: too seldom to be learned.", times=f"{seen:.2g}"
            )
        elif seen > _TOO_OFTEN:
            yield Sentence(
                "Each picture is seen {times} times: the pictures themselves may be learned. Fewer steps, or more "
                "pictures.", times=f"{round(seen):,}",
            )  # fmt: skip


def _of_model(plan: Plan, model: Outline, pictures: Pictures) -> Iterator[Sentence]:
    made_for = native_resolution(model)
    if made_for is not None and pictures.resolution is not None:
        name = Sentence("this tiny model") if is_tiny(model) else model.family
        values = {"now": str(pictures.resolution), "model": name, "made": str(made_for)}
        if pictures.resolution < _SMALL_PART * made_for:
            yield Sentence("{now} px, and {model} was made for {made} px: it learns to draw worse.", **values)
        elif pictures.resolution > _LARGE_PART * made_for:
            yield Sentence("{now} px, and {model} was made for {made} px: slower, and no better.", **values)
    if plan.amount != "density":
        return
    usual = [preset(goal, model)["density"].value for goal in GOALS]
    values = {"now": _per_cent(plan.value), "least": _per_cent(min(usual)), "most": _per_cent(max(usual))}
    if plan.value * _DENSITY_APART < min(usual):
        yield Sentence("A density of {now} learns little: {least} to {most} are usual for this model.", **values)
    elif plan.value > max(usual) * _DENSITY_APART / 2:
        yield Sentence("A density of {now} is much: {least} to {most} are usual for this model.", **values)


def _of_room(machine: Machine, known: Foretold) -> Iterator[Sentence]:
    if machine.memory and known.memory is not None and known.memory.size > machine.memory:
        yield Sentence(
            "This is more memory than there is: smaller pictures, a batch of 1, gradient_checkpointing on, or fewer "
            "weights."
        )
    if machine.free is not None and known.disk is not None and known.disk > machine.free:
        yield Sentence(
            "It may write {needed}, and {free} are free on the disk.",
            needed=readable_size(known.disk), free=readable_size(machine.free),
        )  # fmt: skip


def _per_cent(share: float) -> str:
    return f"{share * 100:g} %"
