"""python -m sara_core train BASE FOLDER… OUT [--density D | --count N | --threshold T] [--steps N] …

On several GPUs: torchrun --nproc-per-node N -m sara_core train …"""

import argparse
import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from ..data.captioning import Captioning
from ..data.dataset import read_folders
from ..data.image_folder import ImageFolder, read_image_folder
from ..errors import TrainingError
from ..files.names import check_name
from ..memory.estimate import is_out_of_memory
from ..pipelines.prepare import prepare_training
from ..pipelines.run import DTYPES, assembled_run, check_selection
from ..training import snapshot
from ..training.optimizer_choice import chosen_optimizer
from ..training.processes import joined_processes
from ..training.record import resumed_state
from ..training.session import TrainingSession
from .presets import apply_preset
from .target import check_target
from .terminal import WORDS, Terminal, own_snapshots, places
from .train_options import AMOUNTS, add_arguments, run_settings, shares

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train a delta of a diffusers model on a folder of images"


def run(arguments: argparse.Namespace) -> str:
    """Train and save; returns the report, empty in all processes but the first."""
    _check_target(arguments.target)
    with joined_processes() as processes, _shortage_in_words(arguments):
        terminal = Terminal(processes, _memory_advice(arguments))
        images, class_images = _images(arguments, terminal)
        if arguments.preset is not None:
            pictures = len({image.path for image in images.images})
            terminal.say(apply_preset(arguments, pictures, AMOUNTS))
        settings = run_settings(arguments, images, class_images, processes.count)
        chosen = chosen_optimizer(settings, WORDS)
        state = None if arguments.resume is None else resumed_state(arguments.resume, settings, WORDS)
        prepared = prepare_training(
            arguments.base, images.images, settings.resolution, processes.device, DTYPES[settings.dtype],
            class_images.images if class_images else (), settings.caption_dropout > 0,
            functools.partial(check_selection, settings=settings), settings.buckets,
        )  # fmt: skip
        run = assembled_run(
            prepared, settings, chosen, processes, checkpointing=arguments.gradient_checkpointing,
            stream=arguments.stream, keeps_own=arguments.class_caption is not None, words=WORDS,
        )  # fmt: skip
        own = own_snapshots(arguments.target, arguments.resume, processes, arguments.snapshots_kept)
        with own as snapshots, terminal.stops():
            session = TrainingSession(
                run, places(arguments.target, snapshots, arguments.snapshot_every), terminal, processes
            )
            if state is not None:
                session.resume(state)
            return _trained(session, terminal, arguments.target)


def _images(arguments: argparse.Namespace, terminal: Terminal) -> tuple[ImageFolder, ImageFolder | None]:
    images = read_folders(shares(arguments), Captioning(arguments.trigger, arguments.caption), arguments.flip)
    class_images = None
    terminal.say(images.text())
    if arguments.class_folder is not None and arguments.class_caption is not None:
        raise TrainingError("--class-folder has captions of its own: give it, or --class-caption, but not both.")
    if arguments.class_folder is not None:
        class_images = read_image_folder(arguments.class_folder)
        terminal.say(f"In the class folder: {class_images.text()}")
    for folder in filter(None, (images, class_images)):
        if remarks := folder.checked():
            terminal.say(remarks)
    if arguments.class_caption is not None:
        class_images = images.under(arguments.class_caption)
        terminal.say(f"The model is kept near what it makes of them with the caption '{arguments.class_caption}'.")
    return images, class_images


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


def _check_target(target: Path) -> None:
    """Refuse before any work what would fail after it."""
    if target.suffix.lower() != ".safetensors" or not target.parent.is_dir():
        raise TrainingError(f"'{target}' must be a .safetensors file in a folder that exists.")
    check_target(target)
    check_name(snapshot.file_name(target.stem, 0), "With what a snapshot adds to it, OUT")
