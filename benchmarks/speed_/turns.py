"""Several trainings that live at once and step in turns, so that whatever else the machine does meets all of them.

    python -m benchmarks.speed_.turns SPECIFICATION_AS_JSON

is one of them (`benchmarks.lib.step_run` has the specification): it takes one step for every line that it reads, and
answers each with a line of JSON.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.lib.memory import OthersWatch
from benchmarks.lib.process import OutOfMemory
from devtools.comfyui.install import HostError

QUIT_SECONDS = 60


class LiveTraining:
    """One training in a process of its own, in a checkout whose library it uses. To be used as a context."""

    def __init__(self, spec: dict, checkout: Path):
        self._said = tempfile.TemporaryFile("w+", errors="replace")
        command = [sys.executable, "-m", "benchmarks.speed_.turns", json.dumps(spec)]
        self._process = subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )

    def __enter__(self) -> "LiveTraining":
        return self

    def __exit__(self, *error) -> None:
        with suppress(BrokenPipeError):  # one that has died reads no more
            self._process.stdin.close()
        try:
            self._process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def step(self) -> dict:
        """What one step took (see `main`). Raises HostError, and OutOfMemory if that is why."""
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise self._failure() from None

    def _failure(self) -> HostError:
        if self._process.wait() == -signal.SIGKILL:
            return OutOfMemory("The memory does not suffice for all trainings of this row at once.")
        self._said.seek(0)
        return HostError("A training failed:\n" + "\n".join(self._said.read().splitlines()[-20:]))


def in_turns(
    specs: Mapping[str, tuple[dict, Path]], repetitions: int
) -> tuple[dict[str, list[dict]], float]:
    """(name → what each of its steps took, how many cores other programs used meanwhile).

    The first step of each, which sets up what the others use, is left out.

    specs: name → (specification, checkout)
    """
    with ExitStack() as stack:
        live = {}
        for name, (spec, checkout) in specs.items():  # one after the other: making a model is what takes most memory
            live[name] = stack.enter_context(LiveTraining(spec, checkout))
            live[name].step()
        taken, watch = {name: [] for name in live}, OthersWatch()
        for number in range(repetitions):
            # Each is the first as often as the last, so that what heats up or fills a cache helps none of them.
            order = list(live) if number % 2 == 0 else list(reversed(live))
            for name in order:
                taken[name].append(live[name].step())
        return taken, watch.cores(sum(turn["processor"] for turns in taken.values() for turn in turns))


def main() -> int:
    """Answers: `seconds` of the whole step, and of these `gradient` for our layers' elements and `update` for the
    optimizer with writing back; `processor`: seconds of all cores that this process used."""
    from benchmarks.lib.step_run import Trainee, WeightGradients

    trainee, answers = Trainee(json.loads(sys.argv[1])), sys.stdout
    sys.stdout = sys.stderr  # what a library says is no answer
    trainee.prepare()
    gradients = WeightGradients()
    for _line in sys.stdin:
        before, gradients.seconds = time.process_time(), 0.0
        trainee.step()
        seconds, update = sum(trainee.clock.phases[-1]), trainee.clock.phases[-1][1]
        answer = {
            "seconds": seconds, "update": update, "gradient": gradients.seconds,
            "processor": time.process_time() - before,
        }  # fmt: skip
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
