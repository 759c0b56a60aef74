"""What the WebUIs that came of AUTOMATIC1111's have in common as hosts that train."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from modules import call_queue, paths, paths_internal, shared

from sara_core.errors import TrainingError, UnsupportedModelError

from ..hosts import Host
from .host import TrainedModel

LATENT_CHANNELS = 4
_SPECIAL = re.compile(r"[\\()\[\]]")
_BREAK = re.compile(r"\bBREAK\b")


class KinTraining(ABC):
    """See training/host.py. host: the same WebUI, as the rest of the face knows it"""

    def __init__(self, host: Host):
        self.host = host
        self.deltas = host.folders()[0]
        self.outputs = self._outputs()
        self.pictures = Path(paths.data_path, "sara", "pictures")

    @contextmanager
    def working(self) -> Iterator[None]:
        with call_queue.queue_lock:
            shared.state.begin("SaRA training")  # each calls the parameter by a name of its own
            shared.state.job_count = 1
            try:
                yield
            finally:
                shared.state.end()
                shared.state.interrupted = False

    @contextmanager
    def ready(self) -> Iterator[TrainedModel]:
        self._load_what_is_chosen()
        if self.host.model() is None:
            raise TrainingError("No model is loaded: choose a checkpoint first.")
        # Not before: what was loaded till now says nothing of what is trained.
        if reason := self.refusal():
            raise UnsupportedModelError(reason)
        with torch.no_grad():
            self.host.take_off_everything()
        with self._prepared() as model:
            yield model

    @abstractmethod
    def refusal(self) -> str | None:
        """A sentence if the model that is loaded cannot be trained, or not as the WebUI was started."""

    @abstractmethod
    def _load_what_is_chosen(self) -> None:
        """The chosen checkpoint may be another one than the last picture was drawn with."""

    @abstractmethod
    def _prepared(self) -> AbstractContextManager[TrainedModel]:
        """`ready`, of the loaded model, which nothing of ours is on."""

    def is_interrupted(self) -> bool:
        return shared.state.interrupted

    def show_step(self, step: int, steps: int) -> None:
        shared.state.sampling_step, shared.state.sampling_steps = step, steps

    def refresh(self) -> None:
        self.host.refresh()

    def _outputs(self) -> Path:
        return Path(paths_internal.default_output_dir)


def as_written(caption: str) -> str:
    """A caption that the host's parser of prompts takes as it is: brackets are no emphasis, and a word no command."""
    if shared.opts.emphasis == "None":
        return caption
    return _BREAK.sub("break", _SPECIAL.sub(r"\\\g<0>", caption))
