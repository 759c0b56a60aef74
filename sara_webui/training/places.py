"""Where a WebUI's trainings leave their files: deltas among the others, the rest in <outputs>/sara."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sara_core.delta import SparseDelta
from sara_core.errors import DeltaError, TrainingError
from sara_core.files import atomic
from sara_core.files.run_name import numbered, reserved
from sara_core.training.free_name import save_under_a_free_name
from sara_core.training.host import Places
from sara_core.training.snapshot import RunSnapshots, run_of
from sara_core.training.words import Words

from .host import TrainingHost

SUFFIX = ".safetensors"


def snapshot_folder(host: TrainingHost) -> Path:
    """Of all runs."""
    return host.outputs / "sara" / "snapshots"


def sample_folder(host: TrainingHost, run: str) -> Path:
    """The pictures of one run."""
    return host.outputs / "sara" / "samples" / run


def snapshot_names(host: TrainingHost) -> list[str]:
    """What can be resumed, the newest first."""
    with contextlib.suppress(OSError):
        files = [path for path in snapshot_folder(host).iterdir() if path.suffix == SUFFIX and run_of(path)]
        return [path.stem for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)]
    return []


def snapshot_path(host: TrainingHost, name: str) -> Path:
    """The snapshot of a name that `snapshot_names` has. Raises TrainingError for any other."""
    if name not in snapshot_names(host):
        raise TrainingError(f"There is no snapshot '{name}' to go on with.")
    return snapshot_folder(host) / f"{name}{SUFFIX}"


def picture_folder(host: TrainingHost, name: str) -> Path:
    """The folder of pictures of this name. Raises TrainingError unless it is one of `picture_folders`."""
    if name not in (known := picture_folders(host)):
        there = f"There are {', '.join(known)}." if known else f"Make one in {host.pictures}."
        raise TrainingError(f"There is no folder '{name}' of pictures. {there}")
    return host.pictures / name


def picture_folders(host: TrainingHost) -> list[str]:
    """The names of the folders of pictures."""
    with contextlib.suppress(OSError):
        return sorted(path.name for path in host.pictures.iterdir() if path.is_dir() and not path.name.startswith("."))
    return []


@contextlib.contextmanager
def reserved_run(host: TrainingHost, name: str, resumed: Path | None) -> Iterator[str]:
    """A name for a run's snapshots and pictures that no other living run has: the delta's, or that with a number."""
    folder = snapshot_folder(host)

    def is_taken(run: str) -> bool:
        return bool(RunSnapshots(folder, run, 1).existing())

    with reserved(folder, resumed and run_of(resumed), numbered(name), is_taken) as run:
        try:
            yield run
        finally:
            if not is_taken(run):
                with contextlib.suppress(OSError):
                    _record(folder, run).unlink()


def places(
    host: TrainingHost, name: str, run: str, values: Mapping[str, Any], saved: Callable[[Path], None]
) -> Places:
    """Of a run that is called `run`, whose delta is to be called `name`. saved: told of each file of it that is written
    """
    target = host.deltas / f"{name}{SUFFIX}"

    def save(write: Callable[[], Path | None]) -> Path:
        with contextlib.suppress(OSError):  # the file's own error is the better one
            host.deltas.mkdir(parents=True, exist_ok=True)
        path = write() or target
        saved(path)
        return path

    def keep(delta: SparseDelta) -> Path:
        return save(lambda: save_under_a_free_name(delta, target))

    return Places(
        RunSnapshots(snapshot_folder(host), run, values["snapshots_kept"]), values["snapshot_every"],
        save_stopped=keep, save_finished=lambda delta: save(lambda: delta.save(target)),
        save_on_request=keep,
    )  # fmt: skip


def remember(host: TrainingHost, run: str, given: Mapping[str, Any]) -> None:
    """Write down what was asked for, so that whoever resumes the run need not say it again."""
    path = _record(snapshot_folder(host), run)
    with contextlib.suppress(DeltaError), atomic.replacing(path) as file:
        file.write(json.dumps(given, indent=1).encode())


def remembered(host: TrainingHost, snapshot: Path) -> dict[str, Any]:
    """What was asked for when the run of a snapshot began; empty where that is not known any more."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_record(snapshot_folder(host), run_of(snapshot) or "").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _record(folder: Path, run: str) -> Path:
    return folder / f"{run}.json"


WORDS = Words(
    model="the model",
    python="the WebUI's Python",
    place=lambda path: path.name,
    go_on=lambda path: f"To go on with it, choose '{path.stem}' under Resume.",
    should_saving_fail=lambda path: f"Should that fail, choose '{path.stem}' under Resume.",
    other_run="the settings are not what they were then",
    same_run="Set them back, or resume nothing for a new run.",
    other_file="choose another one, or update the extension",
)
