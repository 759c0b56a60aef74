"""python -m sara_core train BASE FOLDER OUT [--density D | --count N | --threshold T] [--steps N] …

On several GPUs: torchrun --nproc-per-node N -m sara_core train …"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..data.image_folder import ImageFolder, read_image_folder
from ..errors import TrainingError
from ..files import atomic
from ..memory.estimate import is_out_of_memory
from ..names.patterns import ALL_LAYERS
from ..pipelines.prepare import prepare_training
from ..pipelines.run import DTYPES, PipelineSettings, assembled_run
from ..training.optimizer_choice import chosen_optimizer
from ..training.processes import Processes, joined_processes
from ..training.record import resumed_state, selection_asked_for
from ..training.session import TrainingSession
from .terminal import WORDS, Terminal, own_snapshots, places

HELP = "train a delta of a diffusers model on a folder of images"
DEFAULT_DENSITY = 0.01


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
        terminal = Terminal(processes, _memory_advice(arguments))
        images = read_image_folder(arguments.folder)
        terminal.say(images.text())
        settings = _settings(arguments, images, processes)
        chosen = chosen_optimizer(settings, WORDS)
        state = None if arguments.resume is None else resumed_state(arguments.resume, settings, WORDS)
        prepared = prepare_training(
            arguments.base, images.images, arguments.resolution, processes.device, DTYPES[arguments.dtype]
        )
        run = assembled_run(
            prepared, settings, chosen, processes, checkpointing=arguments.gradient_checkpointing,
            stream=arguments.stream, words=WORDS,
        )  # fmt: skip
        with own_snapshots(arguments.target, arguments.resume, processes) as snapshots, terminal.stops():
            session = TrainingSession(
                run, places(arguments.target, snapshots, arguments.snapshot_every), terminal, processes
            )
            if state is not None:
                session.resume(state)
            return _trained(session, terminal, arguments.target)


def _trained(session: TrainingSession, terminal: Terminal, target: Path) -> str:
    selection, steps = session.run.selection, session.run.settings.steps
    terminal.say(
        f"{selection.count:,} of {selection.candidates:,} weights are trained, learning rate "
        f"{session.run.learning_rate:.2g}"
    )
    session.execute()
    return f"{selection.count:,} weights trained in {steps} steps: {target}" if session.processes.is_first else ""


@contextlib.contextmanager
def _shortage_in_words(arguments: argparse.Namespace) -> Iterator[None]:
    """Raise TrainingError, with the options that help, where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"There is not enough memory for this training. {_memory_advice(arguments)}") from error


def _memory_advice(arguments: argparse.Namespace) -> str:
    given = {
        "--dtype bfloat16": arguments.dtype == "bfloat16",
        "--gradient-checkpointing": arguments.gradient_checkpointing,
        "--stream (on a GPU)": arguments.stream,
    }
    switches = [option for option, is_given in given.items() if not is_given]
    return f"To need less: {', '.join([*switches, 'a lower --resolution, --batch-size or --density'])}."


def _settings(arguments: argparse.Namespace, images: ImageFolder, processes: Processes) -> PipelineSettings:
    amounts = {name: getattr(arguments, name) for name in ("density", "count", "threshold")}
    given = {name: value for name, value in amounts.items() if value is not None} or {"density": DEFAULT_DENSITY}
    (amount, value), = given.items()
    return PipelineSettings(
        selection=selection_asked_for("smallest", amount, value, False, arguments.seed),
        layers=ALL_LAYERS, include=(), exclude=(),
        steps=arguments.steps, batch_size=arguments.batch_size * processes.count,
        grad_accumulation=arguments.accumulation, optimizer="AdamW", learning_rate=arguments.learning_rate or 0.0,
        schedule="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0,
        low_rank_weight=arguments.low_rank, adjust_at=[arguments.adjust_at] if arguments.adjust_at else [],
        noise_levels="uniform", noise_level_mean=0.0, noise_level_std=1.0, min_snr_gamma=0.0, caption_dropout=0.0,
        prior_weight=1.0, seed=arguments.seed, data=images.digest(), resolution=arguments.resolution,
        dtype=arguments.dtype,
    )  # fmt: skip


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
