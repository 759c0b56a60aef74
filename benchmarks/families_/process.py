"""Case after case in a worker that may crash or hang: then that is the case's outcome, and another one goes on."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from devtools.comfyui.install import ROOT, Host, HostError

from .measure import CRASH
from .worker import MARK

# The start of a host on a busy machine, and one case, for which seconds are usual.
START_SECONDS, CASE_SECONDS = 300, 180
# Models that small are no faster with several threads, and much slower where other programs want the processor too.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
# Of a dead worker's standard error.
LAST_LINES = 15


class Lost(Exception):
    """The worker did not answer; says what became of it."""


class Workers:
    """A host's worker, replaced when it is lost.

    about: what the host says of itself: "version", and "classes", name → names of the cases
    Raises HostError if the host cannot be started at all.
    """

    def __init__(self, host: Host):
        self.host = host
        try:
            self._start()
        except Lost as lost:
            raise HostError(f"The ComfyUI in {host.folder} {lost}:\n{self._last_words()}") from None

    def measure(self, name: str, case: str, seconds: float = CASE_SECONDS) -> dict:
        """What benchmarks.families_.measure says of a case of the class `name`."""
        try:
            if self.process is None:
                self._start()
            try:
                self.process.stdin.write(f"{name}\t{case}\n")
                self.process.stdin.flush()
            except OSError:
                raise Lost("has ended") from None
            return self._answer(seconds)
        except Lost as lost:
            self.close()
            return {"case": case, "class": name, "outcome": CRASH, "why": f"the process {lost}"}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.folder.cleanup()

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="comfyui-sara-families-", ignore_cleanup_errors=True)
        self.errors = Path(self.folder.name, "errors.txt")
        command = [
            sys.executable,
            "-m",
            "benchmarks.families_.worker",
            str(self.host.folder),
            f"{self.folder.name}/base",
        ]
        with open(self.errors, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, encoding="utf-8",
            )  # fmt: skip
        self.answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(self.process, self.answers), daemon=True).start()
        self.about = self._answer(START_SECONDS)

    @staticmethod
    def _listen(process: subprocess.Popen, answers: queue.SimpleQueue) -> None:
        for line in process.stdout:
            if line.startswith(MARK):
                answers.put(line[len(MARK) :])
        answers.put(None)

    def _answer(self, seconds: float) -> dict:
        try:
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            raise Lost(f"did not answer in {seconds:.0f} s") from None
        if answer is None:
            raise Lost(f"ended with exit status {self.process.wait()}")
        return json.loads(answer)

    def _last_words(self) -> str:
        return "\n".join(self.errors.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])
