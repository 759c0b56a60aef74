"""The one training that a WebUI does at a time, in a thread of its own: pages may come and go meanwhile."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sara_core.errors import SaRAError, TrainingError

from ..console import log
from ..file_names import file_name
from .host import TrainingHost
from .hosts import NOTHING
from .places import SUFFIX, picture_folder, remembered, snapshot_path
from .progress import Progress
from .settings import prompts, read_values
from .train import Folders, train


class Runner:
    """host: the WebUI; last: the training that goes on, or went on last"""

    def __init__(self, host: TrainingHost):
        self.host = host
        self.last: Progress | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, given: Mapping[str, Any], may_use_paths: bool = False) -> Progress:
        """Begin a training, and return at once.

        given: values of settings.ALL; `folder` and `class_folder`, names of folders of pictures; `resume`, the name of
            a snapshot, whose run's values then hold where none is given
        may_use_paths: whether folders may be paths, as whoever sits before the page may choose any

        Raises SaRAError for what can be known to be wrong by now, and while another training goes on.
        """
        given, resumed, before = dict(given), None, {}
        if resume := given.pop("resume", None):
            resumed = snapshot_path(self.host, str(resume))
            before = remembered(self.host, resumed)
        folders = {
            name: self._folder(str(given.pop(name, None) or ""), before.pop(name, None) or "", may_use_paths)
            for name in ("folder", "class_folder")
        }
        pictures = Folders(**folders)
        if pictures.folder is None:
            raise TrainingError("Choose a folder of pictures.")
        values = read_values({**before, **given})
        progress = Progress(file_name(values["name"], SUFFIX, "the delta").removesuffix(SUFFIX), values)
        prompts(values)
        with self._lock:
            if self.last is not None and not self.last.is_over:
                raise TrainingError(f"'{self.last.name}' is being trained: stop that, or wait until it has ended.")
            self.last = progress
            self._thread = threading.Thread(
                target=self._work, args=(progress, pictures, resumed), name="SaRA training", daemon=True
            )
            self._thread.start()
        return progress

    def ask(self, wanted: str) -> Progress:
        """Ask the training that goes on for one of progress.REQUESTS. Raises TrainingError if none does."""
        if self.last is None:
            raise TrainingError(NOTHING)
        self.last.ask(wanted)
        return self.last

    def wait(self, seconds: float | None = None) -> None:
        """Until the training has ended, or so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self, progress: Progress, folders: Folders, resumed: Path | None) -> None:
        ended = {"phase": "finished"}
        try:
            train(self.host, progress, folders, resumed)
        except BaseException as error:  # of a thread that nobody waits for
            ended = _how_it_ended(error)
        try:
            self.host.refresh()
        except Exception:
            log.exception("SaRA: the WebUI could not list its deltas anew.")
        progress.tell(**ended)  # last of all: from now on another one may begin

    def _folder(self, given: str, before: str, may_use_paths: bool) -> Path | None:
        """before: the folder that the run which is resumed had"""
        if before and given in ("", before):
            return Path(before)
        return self.folder(given, may_use_paths) if given else None

    def folder(self, given: str, may_use_paths: bool) -> Path:
        """The folder of pictures that somebody means. Raises TrainingError if there is none of that name."""
        path = Path(given)
        return path if may_use_paths and path.is_absolute() else picture_folder(self.host, given)


def _how_it_ended(error: BaseException) -> dict[str, str]:
    if isinstance(error, KeyboardInterrupt):
        return {"phase": "stopped", "message": "Stopped before the first step."}
    if isinstance(error, SaRAError):
        is_stop = isinstance(error.__cause__, KeyboardInterrupt)
        return {"phase": "stopped" if is_stop else "failed", "message": str(error)}
    log.error("SaRA: the training failed.", exc_info=error)
    return {"phase": "failed", "message": f"{type(error).__name__}: {error}"}
