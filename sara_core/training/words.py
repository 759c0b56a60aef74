"""What the people in front of a host call things: a training speaks of settings, files and snapshots in their words."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Words:
    """A host's words, for the messages of a training; as they are here, for a script.

    setting: the name of a setting (a field of RunSettings) → what is to be set: "batch_size" or "--batch-size"
    model, python: the model that is trained, and the Python that is short of a package
    place: the path of a file that was saved → where to look for it
    go_on: the path of a snapshot → a sentence, how to go on with the run; should_saving_fail: one, how to get by it
        what cannot be saved now
    other_run: a clause, why a snapshot is not resumed, before the list of what differs; same_run: a sentence, what to
        do about that
    other_file: a clause, what to do about a file that is no snapshot
    """

    setting: Callable[[str], str] = str
    model: str = "this model"
    python: str = "this Python"
    place: Callable[[Path], str] = str
    go_on: Callable[[Path], str] = "To go on with it, resume {}.".format
    should_saving_fail: Callable[[Path], str] = "Should that fail, resume {}.".format
    other_run: str = "this run is another one"
    same_run: str = "Give the same settings and images as then, or begin a new run."
    other_file: str = "choose another one, or update SaRA"
