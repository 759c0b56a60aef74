"""How long a step took, and what a forward and backward held, in trainings of this machine: of the next one like them
it can be told before it begins. Kept in a small file in the user folder, without any name of a model or picture."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import folder_paths

from ....sara_core.errors import DeltaError
from ....sara_core.files.atomic import replacing
from ....sara_core.names.outline import outline_of
from .runs import LiveRun

MOST = 100
MOST_BYTES = 1 << 20
# The first steps are slower than the others.
LEAST_STEPS = 3
# So much smaller or larger the pictures may be for a step's time to go by their area.
_SMALLEST, _LARGEST = 0.6, 1.7


@dataclass(frozen=True)
class Kind:
    """Trainings that take the same time a step.

    family, trainable: of the model (names.outline.Outline); device: as torch calls it; area: of the largest latents, in
    pixels; pictures, passes: per forward pass, and passes a step; checkpointing: whether it is on
    """

    family: str | None
    trainable: int
    device: str
    area: int
    pictures: int
    passes: int
    checkpointing: bool

    def is_like(self, other: "Kind") -> bool:
        """Whether they differ in nothing but the area, and in that little."""
        alike = {**asdict(self), "area": 0} == {**asdict(other), "area": 0}
        return alike and _SMALLEST * other.area <= self.area <= _LARGEST * other.area


@dataclass(frozen=True)
class Past:
    """seconds: of a step; working: bytes of a forward and backward, None where that was not estimated"""

    kind: Kind
    seconds: float
    working: int | None


def expected_of(kind: Kind) -> tuple[float | None, int | None]:
    """Seconds a step and bytes of a forward and backward, by the most similar training before; None for unknown."""
    alike = [past for past in _known() if past.kind.is_like(kind)]
    if not alike:
        return None, None
    nearest = min(reversed(alike), key=lambda past: abs(math.log(past.kind.area / kind.area)))
    part = kind.area / nearest.kind.area
    return nearest.seconds * part, None if nearest.working is None else round(nearest.working * part)


def kind_of_run(training, area: int, pictures: int, passes: int, checkpointing: bool) -> Kind:
    """Of a training whose model is loaded. training: a TrainingModel"""
    model = training.patcher.model.diffusion_model
    known = outline_of({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    return Kind(known.family, known.trainable, str(training.device), area, pictures, passes, checkpointing)


@contextmanager
def remembered(kind: Kind, live: LiveRun, working) -> Iterator[None]:
    """For a run's course: however it ends, its time a step is known from then on.

    working: called in the end; the bytes of a forward and backward, or None
    """
    before = live.state.step
    try:
        yield
    finally:
        state = live.state
        if state.seconds_per_step and state.step - before >= LEAST_STEPS and kind.area > 0:
            _remember(Past(kind, state.seconds_per_step, working()))


def _remember(past: Past) -> None:
    others = [other for other in _known() if other.kind != past.kind]
    content = json.dumps([asdict(one) for one in [*others, past][-MOST:]])
    try:
        with replacing(_file()) as file:
            file.write(content.encode())
    except (DeltaError, OSError) as error:  # the training itself needs none of it
        logging.info(f"SaRA: how long a step took cannot be remembered ({error}).")


def _known() -> list[Past]:
    """All that are remembered, the newest last; none where the file is not what was written."""
    path = _file()
    try:
        if path.stat().st_size > MOST_BYTES:
            return []
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = [Past(Kind(**one.pop("kind")), **one) for one in entries]
        return [past for past in found if 0 < past.seconds < math.inf and past.kind.area > 0]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _file() -> Path:
    return Path(folder_paths.get_user_directory(), "sara_past_runs.json")
