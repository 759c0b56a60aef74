"""How much a run will write, compared with what is free before its first step."""

from ..errors import TrainingError
from ..files.disk import free_bytes
from ..memory.estimate import optimizer_bytes
from ..wording import Sentence, readable_size
from .host import Places
from .run import Run

# Bytes per trained element: in a delta's file the change, and its position in one or more; in a snapshot, beside the
# optimizer's moments, change, position and whether it still trains.
DELTA_AT_LEAST, DELTA_AT_MOST, SNAPSHOT = 5, 8, 9


def disk_needed(run: Run, places: Places) -> tuple[int, int]:
    """Bytes of the finished delta at least, and of all that a run has on the disk at once at most: the finished delta,
    the snapshots that are kept and the one that is being written, and the host's own files."""
    count, settings = len(run.store.values), run.settings
    moments, _ = optimizer_bytes(run.training.optimizer)
    most = bytes_at_most(count, settings.steps, places.snapshot_every, places.snapshots.keep, moments)
    most += places.other_bytes
    return count * DELTA_AT_LEAST, most


def bytes_at_most(elements: int, steps: int, snapshot_every: int, kept: int, moments: float) -> int:
    """Bytes of the finished delta and of the snapshots that are on the disk at once, at most.

    elements: trained; kept: snapshots; moments: bytes that the optimizer keeps per element
    """
    due = steps // snapshot_every if snapshot_every else 0
    snapshots = min(kept + 1, max(1, due))  # one that is stopped always leaves one
    return round(elements * (DELTA_AT_MOST + snapshots * (SNAPSHOT + moments)))


def check_disk(run: Run, places: Places) -> str | None:
    """A warning if a run may not find room for all that it writes.

    Raises TrainingError if the finished delta alone finds none.
    """
    free = free_bytes(places.snapshots.folder / "x")
    least, most = disk_needed(run, places)
    if free is None or free >= most:
        return None
    values = {"folder": str(places.snapshots.folder.parent), "free": readable_size(free)}
    if free < least:
        raise TrainingError(Sentence(
            "The finished delta would take at least {needed}, and in '{folder}' {free} are free: free some space "
            "there, or train fewer weights.", needed=readable_size(least), **values,
        ))  # fmt: skip
    return Sentence(
        "This run may write {needed} (the delta, snapshots and pictures), and in '{folder}' {free} are free: free some "
        "space there, or snapshots and pictures may be missing.", needed=readable_size(most), **values,
    )  # fmt: skip
