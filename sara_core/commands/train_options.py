"""The options of `python -m sara_core train`: those of a training in the words that every host has for them, and the
command's own."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from ..data.dataset import MOST_REPEATS, Share
from ..data.image_folder import ImageFolder, digest_of_both
from ..data.noise_levels import noise_range
from ..errors import TrainingError
from ..names.patterns import split_patterns
from ..pipelines.run import DTYPES, PipelineSettings
from ..training.record import parts_of_a_run, selection_asked_for
from ..training.settings import (
    CLASS_IMAGES, COURSE, METHOD, NOISE_AND_CAPTIONS, SETTINGS, SNAPSHOTS, WHICH_WEIGHTS, Setting,
)  # fmt: skip
from ..wording import counted
from .options import number
from .presets import Given, add_preset
from .terminal import SNAPSHOTS_KEPT, WORDS, option

DEFAULT_DENSITY = 0.01
AMOUNTS = ("density", "count", "threshold")
# Names that the options had at first, for the scripts that have them.
_FIRST_NAMES = {"grad_accumulation": "--accumulation", "low_rank_weight": "--low-rank"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare BASE, FOLDER, OUT and all settings of a training, in the groups of training/settings.py."""
    parser.add_argument("base", metavar="BASE", help="a diffusers folder of Stable Diffusion 1 to 3.5, SDXL or Flux")
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="+", help="images, each with its caption in a .txt of the same name"
    )
    parser.add_argument(
        "target", metavar="OUT", type=Path,
        help="the delta, a .safetensors file, replaced if it exists; ComfyUI loads it",
    )  # fmt: skip
    add_preset(parser.add_argument_group("settings to begin with"))
    which = parser.add_argument_group("which weights are trained")
    amount = which.add_mutually_exclusive_group()
    amount.add_argument(
        "--density", type=number(above=0, most=1), metavar="X",
        help="Share of the weights to train, smallest first. 0.01 is a good start, 0.05 learns more. "
        f"(default {DEFAULT_DENSITY})",
    )  # fmt: skip
    for name in ("count", "threshold"):
        amount.add_argument(option(name), **_kind(SETTINGS[name]), help=SETTINGS[name].help)
    _add(which, WHICH_WEIGHTS.keys() - set(AMOUNTS))
    _add(parser.add_argument_group("the course of the training"), COURSE, batch_size="That many in each process.")
    _add(parser.add_argument_group("the method"), METHOD, adjust_at="So does 0.")
    _add(parser.add_argument_group("noise and captions"), NOISE_AND_CAPTIONS)
    _add_images(parser.add_argument_group("images and captions"))
    class_images = parser.add_argument_group("class images")
    class_images.add_argument(
        "--class-folder", metavar="FOLDER",
        help="To learn a subject (DreamBooth): pictures of other things of its kind with their captions, so that the "
        "model does not forget them.",
    )  # fmt: skip
    class_images.add_argument(
        "--class-caption", metavar="TEXT",
        help="Without such pictures: a caption with which the model is to draw as before, like \"a dog\" where one dog "
        "with a name is learned. A step then takes more than twice as long.",
    )  # fmt: skip
    _add(class_images, CLASS_IMAGES)
    model = parser.add_argument_group("the model and its memory")
    model.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="What the model computes in. (default %(default)s)"
    )
    model.add_argument(
        "--gradient-checkpointing", action="store_true",
        help="Needs much less memory for a somewhat longer step.",
    )  # fmt: skip
    model.add_argument(
        "--stream", action="store_true",
        help="For a GPU that the model does not fit: its weights stay in main memory and pass through layer by layer.",
    )  # fmt: skip
    going_on = parser.add_argument_group("stopping and going on")
    _add(going_on, SNAPSHOTS)
    parser.set_defaults(snapshots_kept=SNAPSHOTS_KEPT)
    going_on.add_argument(
        "--resume", metavar="SNAPSHOT",
        help="Go on with a stopped run: give its snapshot and leave everything else as it was.",
    )  # fmt: skip


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--resolution", type=number(1, 1 << 16, whole=True), default=512, action=Given,
        help="Images are cut to such squares; SDXL, SD3 and Flux were made for 1024. (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--buckets", action="store_true",
        help="Each image is cut as little as possible, to one of several shapes with as many pixels as the square.",
    )  # fmt: skip
    group.add_argument("--flip", action="store_true", help="Each image is also shown with left and right exchanged.")
    group.add_argument(
        "--trigger", default="", metavar="TEXT",
        help="A word that calls for what is learned: it is put before every caption that does not have it.",
    )  # fmt: skip
    group.add_argument(
        "--caption", default="", metavar="TEXT",
        help="The caption of the images that have none of their own, which are left out without it and --trigger.",
    )  # fmt: skip
    group.add_argument(
        "--repeats", type=_repeats, default=(), metavar="N,N…",
        help="How often each FOLDER's images are shown in the time the others' are shown once, in the order of the "
        "folders. (default 1 for each)",
    )  # fmt: skip


def _repeats(text: str) -> tuple[int, ...]:
    return tuple(map(number(1, MOST_REPEATS, whole=True), text.split(",")))


def shares(arguments: argparse.Namespace) -> list[Share]:
    """The folders of images, each with its repeats. Raises TrainingError if there are not as many of one as of the
    other."""
    folders, repeats = arguments.folder, arguments.repeats or (1,) * len(arguments.folder)
    if len(folders) != len(repeats):
        raise TrainingError(
            f"--repeats has {counted(len(repeats), 'number')} for {counted(len(folders), 'folder')}: give one for each."
        )
    return list(map(Share, folders, repeats))


def run_settings(
    arguments: argparse.Namespace, images: ImageFolder, class_images: ImageFolder | None, processes: int
) -> PipelineSettings:
    """What decides the run's numbers. processes: how many train together. Raises TrainingError for a bad value."""
    given = {name: value for name in AMOUNTS if (value := getattr(arguments, name)) is not None}
    (amount, value), = (given or {"density": DEFAULT_DENSITY}).items()
    named = {name: value for name, value in vars(arguments).items() if name in PipelineSettings.__dataclass_fields__}
    noise_from, noise_to = noise_range(arguments.noise_range, arguments.noise_from, arguments.noise_to)
    read = {
        "noise_from": noise_from,
        "noise_to": noise_to,
        "selection": selection_asked_for(
            arguments.selection_rule, amount, value, arguments.per_layer, arguments.seed
        ),
        "include": split_patterns(arguments.include),
        "exclude": split_patterns(arguments.exclude),
        "batch_size": arguments.batch_size * processes,
        "adjust_at": [] if _is_zero(arguments.adjust_at) else parts_of_a_run(arguments.adjust_at, WORDS),
        "data": digest_of_both(images, class_images),
    }
    return PipelineSettings(**{**named, **read})


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _add(group: argparse._ArgumentGroup, names: Iterable[str], **more: str) -> None:
    """The options of some settings, in the order of SETTINGS. more: by setting, a sentence more, about the command"""
    for name in (name for name in SETTINGS if name in names):
        setting = SETTINGS[name]
        flags = [option(name), *([_FIRST_NAMES[name]] if name in _FIRST_NAMES else [])]
        one_of = f"One of: {', '.join(map(repr, setting.choices))}." if setting.choices else ""
        told = " ".join(filter(None, [setting.help, more.get(name), one_of])).replace("%", "%%")
        if isinstance(setting.default, bool):
            group.add_argument(*flags, action="store_true", help=told)
            continue
        default = "empty" if setting.default == "" else "%(default)s"
        group.add_argument(*flags, default=setting.default, help=f"{told} (default {default})", **_kind(setting))


def _kind(setting: Setting) -> dict:
    if setting.choices:
        return {"choices": setting.choices, "metavar": "NAME"}
    if isinstance(setting.default, str):
        return {"action": Given, "metavar": "TEXT"}
    parse = number(setting.least, setting.most, whole=setting.is_whole)
    return {"action": Given, "type": parse, "metavar": "N" if setting.is_whole else "X"}
