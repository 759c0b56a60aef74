"""python -m sara_core train BASE FOLDER OUT [--density D | --count N | --threshold T] [--steps N] …

On several GPUs: torchrun --nproc-per-node N -m sara_core train …"""

import argparse
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ..data.image_folder import ImageFolder, read_image_folder
from ..errors import NameTakenError, SaRAError, TrainingError
from ..files import atomic
from ..files.run_name import numbered, reserved
from ..memory.estimate import is_out_of_memory
from ..pipelines.prepare import prepare_training
from ..pipelines.run import DTYPES, DiffusersRun, RunSettings
from ..training import snapshot
from ..training.processes import Processes, joined_processes

HELP = "train a delta of a diffusers model on a folder of images"
DEFAULT_DENSITY = 0.01
PROGRESS_LINES = 100
SNAPSHOTS_KEPT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="a diffusers folder of Stable Diffusion 1 to 3.5, SDXL or Flux")
    parser.add_argument("folder", metavar="FOLDER", help="images, each with its caption in a .txt of the same name")
    parser.add_argument(
        "target", metavar="OUT", type=Path,
        help="the delta, a .safetensors file, replaced if it exists; ComfyUI loads it",
    )  # fmt: skip
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--density", type=float, help=f"share of the weights to train (default {DEFAULT_DENSITY})")
    amount.add_argument("--count", type=int, help="number of weights to train")
    amount.add_argument("--threshold", type=float, help="train the weights smaller than this, such as 0.002")
    parser.add_argument("--steps", type=_positive, default=500, help="default %(default)s")
    parser.add_argument(
        "--batch-size", type=_positive, default=1, help="images per forward pass, in each process (default %(default)s)"
    )
    parser.add_argument("--accumulation", type=_positive, default=1, help="passes per step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, help="default: the paper's, by the size of the trained weights")
    parser.add_argument("--low-rank", type=float, default=0.0, help="strength of the low-rank loss (default: off)")
    parser.add_argument(
        "--adjust-at", type=float, default=0.5,
        help="part of the run after which only weights that are still small train on; 0: never (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--resolution", type=int, default=512,
        help="images are cut to such squares (default %(default)s; SDXL, SD3 and Flux were made for 1024)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (default %(default)s)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, longer steps")
    parser.add_argument(
        "--stream", action="store_true",
        help="for a GPU that the model does not fit: its weights stay in main memory and pass through layer by layer",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument(
        "--snapshot-every", type=int, default=500, metavar="STEPS",
        help="and before the last step, to go on from after a crash; 0: when stopped only (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--resume", metavar="SNAPSHOT", help="go on with a stopped run, all else being as it was")


def run(arguments: argparse.Namespace) -> str:
    """Train and save; returns the report, empty in all processes but the first."""
    _check_numbers(arguments)
    with joined_processes() as processes, _shortage_in_words(arguments):
        images = read_image_folder(arguments.folder)
        _say(processes, images.text())
        settings = _settings(arguments, images, processes)
        state = None if arguments.resume is None else _resumed(arguments.resume, settings)
        prepared = prepare_training(
            arguments.base, images.images, arguments.resolution, processes.device, DTYPES[arguments.dtype]
        )
        run = DiffusersRun(prepared, settings, processes, arguments.gradient_checkpointing, arguments.stream)
        if state is not None:
            run.training.load_state(state)
        with _own_snapshots(arguments.target, arguments.resume, processes) as snapshots:
            return _Session(run, processes, arguments, snapshots).execute()


class _Session:
    """A run with its progress lines and snapshots, and a clear end however it comes."""

    def __init__(
        self, run: DiffusersRun, processes: Processes, arguments: argparse.Namespace, snapshots: snapshot.RunSnapshots
    ):
        self.run, self.training, self.processes, self.snapshots = run, run.training, processes, snapshots
        self.target, self.snapshot_every = arguments.target, arguments.snapshot_every

    def execute(self) -> str:
        """Train to the end and save; returns the report. TrainingError after a stop, with what was kept."""
        selection, steps = self.run.optimizer.selection, self.run.settings.steps
        self._say(
            f"{selection.count:,} of {selection.candidates:,} weights are trained, learning rate "
            f"{self.run.learning_rate:.2g}"
        )
        try:
            with _stop_requests() as stop:
                self.training.run(self._on_step(stop))
            if self.processes.is_first:
                self.run.delta().save(self.target)
        except BaseException as error:
            kept = self._keep(resumable=not isinstance(error, TrainingError))
            if isinstance(error, SaRAError):
                raise type(error)(f"{error} {kept}") from error
            if isinstance(error, KeyboardInterrupt):
                raise TrainingError(f"Stopped after step {self.training.step} of {steps}. {kept}") from error
            self._say(kept)
            raise
        if not self.processes.is_first:
            return ""
        self.snapshots.discard()
        return f"{selection.count:,} weights trained in {steps} steps: {self.target}"

    def _on_step(self, stop: "_Stop"):
        steps, start, begun = self.run.settings.steps, time.monotonic(), self.training.step

        def on_step(step: int, loss: float):
            if step == steps or step % max(1, steps // PROGRESS_LINES) == 0:
                seconds = (time.monotonic() - start) / (step - begun)
                self._say(f"step {step} of {steps}, loss {loss:.4f}, {seconds:.2f} s per step")
            if self.snapshots.is_due(step, steps, self.snapshot_every):
                self._save_snapshot()
            # Together, after a whole step: a process that is left alone would wait for the others for ever.
            if self.processes.any(stop.requested) and step < steps:
                raise KeyboardInterrupt

        return on_step

    def _save_snapshot(self) -> Path | None:
        if not self.processes.is_first:
            return None
        try:
            return self.snapshots.save(self.training.step, self.training.state(), asdict(self.run.settings))
        except Exception as error:  # a full disk is no reason to end a run that can still be finished
            self._say(f"There is no snapshot of step {self.training.step}. {_cause(error)}")
            return None

    def _keep(self, resumable: bool) -> str:
        """Save what was trained before the run ended early; returns a sentence about it."""
        steps = self.training.step
        if steps == 0:
            return "No step was completed, so there is nothing to keep."
        if not self.processes.is_first:
            return "What was trained is kept by the first process."
        path = self._save_snapshot() if resumable else None
        again = f" To go on with it: --resume {path}" if path else ""
        try:
            kept = self._save_under_a_free_name()
        except Exception as error:
            return f"What was trained in {steps} steps could not be saved: {_cause(error)}{again}"
        return f"What was trained in {steps} steps is in {kept}.{again}"

    def _save_under_a_free_name(self) -> Path:
        """OUT's or, if anything has that, <OUT>_stopped, <OUT>_stopped_2 …: only a finished delta replaces another."""
        delta, stem = self.run.delta(), self.target.stem
        for name in itertools.chain([stem], numbered(f"{stem}_stopped")):
            path = self.target.with_name(f"{name}{self.target.suffix}")
            with contextlib.suppress(NameTakenError):
                delta.save(path, overwrite=False)
                return path
        raise AssertionError("there is no end of names")

    def _say(self, text: str) -> None:
        _say(self.processes, text)


@contextlib.contextmanager
def _own_snapshots(target: Path, resumed: str | None, processes: Processes) -> Iterator[snapshot.RunSnapshots]:
    """The snapshots of a run, in <OUT>_snapshots, under OUT's name or, if another run has left or is writing some under
    it, OUT's with a number. The folder goes if nothing is left in it."""
    folder, name = target.with_name(f"{target.stem}_snapshots"), target.stem
    if not processes.is_first:  # it writes none
        yield snapshot.RunSnapshots(folder, name, SNAPSHOTS_KEPT)
        return
    is_here = resumed is not None and Path(resumed).parent.resolve() == folder.resolve()
    before = snapshot.run_of(resumed) if is_here else None

    def is_taken(name: str) -> bool:
        return bool(snapshot.RunSnapshots(folder, name, SNAPSHOTS_KEPT).existing())

    try:
        with reserved(folder, before, numbered(name), is_taken) as own:
            yield snapshot.RunSnapshots(folder, own, SNAPSHOTS_KEPT)
    finally:
        with contextlib.suppress(OSError):  # absent, or with files in it
            folder.rmdir()


@contextlib.contextmanager
def _shortage_in_words(arguments: argparse.Namespace) -> Iterator[None]:
    """Raise TrainingError, with the options that help, where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        given = {
            "--dtype bfloat16": arguments.dtype == "bfloat16",
            "--gradient-checkpointing": arguments.gradient_checkpointing,
            "--stream (on a GPU)": arguments.stream,
        }
        switches = [option for option, is_given in given.items() if not is_given]
        raise TrainingError(
            "There is not enough memory for this training. To need less: "
            f"{', '.join([*switches, 'a lower --resolution, --batch-size or --density'])}."
        ) from error


class _Stop:
    requested = False


@contextlib.contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Ctrl-C, and the request to end that a system sends, inside: the first is noted, the second ends at once."""
    stop, signals = _Stop(), (signal.SIGINT, signal.SIGTERM)

    def note(number, frame):
        stop.requested = True
        signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(arguments: argparse.Namespace, images: ImageFolder, processes: Processes) -> RunSettings:
    amounts = {name: getattr(arguments, name) for name in ("density", "count", "threshold")}
    selection = {name: value for name, value in amounts.items() if value is not None}
    return RunSettings(
        selection or {"density": DEFAULT_DENSITY}, arguments.steps, arguments.batch_size * processes.count,
        arguments.accumulation, arguments.learning_rate, arguments.low_rank, arguments.adjust_at,
        arguments.resolution, arguments.dtype, arguments.seed, images.digest(),
    )  # fmt: skip


def _resumed(path: str, settings: RunSettings) -> dict:
    state, saved = snapshot.load(path)
    if differing := snapshot.differences(saved, asdict(settings)):
        raise TrainingError(
            f"The run of {Path(path).name} cannot go on, because this one is another ({'; '.join(differing)}). Give "
            "the same images and options as then, or leave --resume out for a new run."
        )
    return state


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Refuse before any work what would fail or be without meaning after it."""
    if arguments.target.suffix.lower() != ".safetensors" or not arguments.target.parent.is_dir():
        raise TrainingError(f"'{arguments.target}' must be a .safetensors file in a folder that exists.")
    atomic.check_writable(arguments.target)
    if not 0 <= arguments.adjust_at < 1:
        raise TrainingError(f"--adjust-at is a part of the run, from 0 to below 1, not {arguments.adjust_at}.")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _cause(error: Exception) -> str:
    """What went wrong, for people."""
    return str(error) if isinstance(error, SaRAError) else f"{type(error).__name__}: {error}"


def _say(processes: Processes, text: str) -> None:
    """On standard error: standard output is for the report."""
    if processes.is_first:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
