"""What the WebUIs that came of AUTOMATIC1111's have in common as hosts that train."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modules import call_queue, paths, paths_internal, shared

from ..hosts import Host

LATENT_CHANNELS = 4
_SPECIAL = re.compile(r"[\\()\[\]]")
_BREAK = re.compile(r"\bBREAK\b")


class KinTraining:
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
