"""What people do on the command line: `python -m sara_core …`, one call after the other."""

import contextlib
import io
import re
import runpy
import signal
import sys
from pathlib import Path

from .records import Records

# What an output says of time, which no two runs share.
DURATION = re.compile(r"\d+\.\d+ s per step")

TRAIN = ("--resolution", "32", "--density", "0.05", "--learning-rate", "1e-2")
TRAININGS = {
    "sd": (),
    "sd in other ways": ("--batch-size", "2", "--accumulation", "2", "--low-rank", "1e-4", "--adjust-at", "0.3",
                         "--gradient-checkpointing", "--seed", "7"),
    "sd in bf16": ("--dtype", "bfloat16"),
    "sd streamed": ("--stream",),
}  # fmt: skip
OTHER_FAMILIES = ("sdxl", "sd3", "flux")
STEPS, STOPPED_AFTER = "20", 12
WRITABLE = {"sara": ".safetensors", "diff": ".safetensors", "lora": ".safetensors", "shira": ""}
MERGES = {
    "sum": (), "mean": (), "ties": ("--keep", "0.4"), "dare": ("--seed", "4"),
    "ties by count, with blocks": ("--method", "ties", "--sign", "count", "--block", "input_blocks = 0.5"),
}  # fmt: skip


class CommandFailed(Exception):
    """A command ended otherwise than it must."""


class CommandLine:
    """Calls of the command line, each recorded with what it said."""

    def __init__(self, records: Records):
        self.records = records

    def run(self, name: str, *arguments: object, status: int = 0, stopped_after: int | None = None) -> None:
        """stopped_after: Ctrl-C is pressed after so many steps. Raises CommandFailed for another exit status."""
        arguments = [str(argument) for argument in arguments]
        output, errors = io.StringIO(), _Terminal(stopped_after)
        before = sys.argv
        sys.argv = ["sara_core", *arguments]
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                runpy.run_module("sara_core", run_name="__main__", alter_sys=True)
            found = None
        except SystemExit as ended:
            found = ended.code
        finally:
            sys.argv = before
        said = DURATION.sub("… s per step", f"{output.getvalue()}--\n{errors.getvalue()}")
        if found != status:
            raise CommandFailed(f"{' '.join(arguments)} ended with {found} instead of {status}:\n{said}")
        self.records.text(name, f"{arguments}\n{status}\n{said}")


class _Terminal(io.StringIO):
    """Standard error, in front of which somebody presses Ctrl-C when a step is done."""

    def __init__(self, stopped_after: int | None):
        super().__init__()
        self.line = None if stopped_after is None else f"step {stopped_after} of"

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.line is not None and text.startswith(self.line):
            signal.raise_signal(signal.SIGINT)
        return written


def make(records: Records, inputs: Path, host: Path) -> None:
    """Write everything that this part compares."""
    command = CommandLine(records)
    _train(records, command, inputs)
    _convert(records, command, inputs)
    _merge_bake_extract(records, command, inputs)
    _inspect(command, inputs)
    _refusals(records, command, inputs)


def _train(records: Records, command: CommandLine, inputs: Path) -> None:
    images = inputs / "images"
    for name, options in TRAININGS.items():
        target = records.path(f"train/{name}.safetensors")
        command.run(f"train/{name}", "train", inputs / "models/sd", images, target, *TRAIN, "--steps", STEPS, *options)
    for family in OTHER_FAMILIES:
        target = records.path(f"train/{family}.safetensors")
        command.run(f"train/{family}", "train", inputs / "models" / family, images, target, *TRAIN, "--steps", "4")
    for amount, value in (("--count", "5000"), ("--threshold", "0.004")):
        target = records.path(f"train/{amount[2:]}.safetensors")
        command.run(f"train/{amount[2:]}", "train", inputs / "models/sd", images, target, "--resolution", "32", amount,
                    value, "--steps", "3")  # fmt: skip
    target = records.path("train/stopped.safetensors")
    run = ("train", inputs / "models/sd", images, target, *TRAIN, "--steps", STEPS, "--snapshot-every", "5")
    command.run("train/stopped", *run, status=1, stopped_after=STOPPED_AFTER)
    (snapshot,) = target.with_name("stopped_snapshots").glob(f"*{STOPPED_AFTER:07}.safetensors")
    kept = records.path(f"train/snapshot/{snapshot.name}")
    kept.write_bytes(snapshot.read_bytes())
    target.rename(target.with_name("what the stop left.safetensors"))
    command.run("train/resumed", *run, "--resume", snapshot)


def _convert(records: Records, command: CommandLine, inputs: Path) -> None:
    base = inputs / "models/sd"
    files = sorted([*(inputs / "adapters").iterdir(), inputs / "tuned/0", inputs / "deltas/0.safetensors"])
    for file in files:
        sparse = {"shira", "super-tuning", "authors", "lt-sft", "0"}
        density = () if file.stem in sparse else ("--density", "0.004")
        what = f"convert/from {file.parent.name}, {file.stem}"
        command.run(what, "convert", file, records.path(f"{what}.safetensors"), "--base", base, *density)
    for kind, ending in WRITABLE.items():
        target = records.path(f"convert/to {kind}{ending}")
        command.run(f"convert/to {kind}", "convert", inputs / "deltas/1.safetensors", target, "--to", kind, "--base",
                    base, "--rank", "3")  # fmt: skip


def _merge_bake_extract(records: Records, command: CommandLine, inputs: Path) -> None:
    deltas = [inputs / "deltas" / f"{number}.safetensors" for number in range(3)]
    weighted = [f"{delta}={weight}" for delta, weight in zip(deltas, ("0.6", "-0.4", "1.5"))]
    for name, options in MERGES.items():
        method = () if "--method" in options else ("--method", name)
        target = records.path(f"merge/{name}.safetensors")
        command.run(f"merge/{name}", "merge", target, *weighted, *method, *options)
    for base in sorted((inputs / "checkpoints").iterdir()):
        for name, chosen in (("one", [deltas[0]]), ("several", weighted)):
            what = f"bake/{name}, {base.stem}"
            command.run(what, "bake", base, records.path(f"{what}.safetensors"), *chosen)
    rules = {"everything": (), "density": ("--density", "0.003"), "count": ("--count", "999"),
             "support": ("--support", deltas[2])}  # fmt: skip
    for name, rule in rules.items():
        target = records.path(f"extract/{name}.safetensors")
        command.run(f"extract/{name}", "extract", inputs / "models/sd", inputs / "tuned/1", target, *rule)
    command.run("extract/of files", "extract", inputs / "checkpoints/fp16.safetensors",
                records.path("bake/one, fp16.safetensors"), records.path("extract/of files.safetensors"))  # fmt: skip


def _inspect(command: CommandLine, inputs: Path) -> None:
    delta = inputs / "deltas/0.safetensors"
    for name, options in {"text": (), "json": ("--json",), "beside a base": ("--base", inputs / "models/sd"),
                          "json beside a base": ("--json", "--base", inputs / "tuned/0")}.items():  # fmt: skip
        command.run(f"inspect/{name}", "inspect", delta, *options)


def _refusals(records: Records, command: CommandLine, inputs: Path) -> None:
    """What people are told when it cannot be done."""
    delta, target = inputs / "deltas/0.safetensors", records.path("refused/none.safetensors")
    lora, train = inputs / "adapters/lora.safetensors", ("train", inputs / "models/sd")
    for name, arguments in {
        "a file that is no delta": ("inspect", lora),
        "a lora without its base": ("convert", lora, target),
        "a lora without a density": ("convert", lora, target, "--base", inputs / "models/sd"),
        "a base of another family": ("convert", lora, target, "--base", inputs / "models/flux", "--density", "0.1"),
        "a delta of another family": ("bake", inputs / "models/flux/transformer/diffusion_pytorch_model.safetensors",
                                      target, delta),
        "equal models": ("extract", inputs / "models/sd", inputs / "models/sd", target),
        "a threshold of nothing": (*train, inputs / "images", target, "--threshold", "1e-30", "--resolution", "32"),
        "a folder without pictures": (*train, inputs / "deltas", target),
    }.items():  # fmt: skip
        command.run(f"refused/{name}", *arguments, status=1)
    command.run("refused/an unknown option", "merge", target, delta, "--method", "magic", status=2)
