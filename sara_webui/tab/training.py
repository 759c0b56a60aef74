"""The tab Train: what is set, and what is shown of the training that goes on."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from sara_core.data.captioning import Captioning
from sara_core.data.dataset import Share, read_folders
from sara_core.errors import SaRAError
from sara_core.models.family import outline_of_file
from sara_core.names.outline import Outline, outline_of
from sara_core.training.presets import GOALS, Choice, preset

from ..training.places import picture_folders, snapshot_names
from ..training.progress import Progress
from ..training.hosts import NOTHING
from ..training.runner import Runner
from ..training.settings import ALL
from .inputs import component, told
from .view import progress_view, report, sentence

SECONDS_BETWEEN_LOOKS = 1.0
NO_PRESET, NEW_RUN = "none", "none: a new run"
# Row by row; the others are under More settings.
ROWS = (("name", "trigger"), ("resolution", "density"), ("steps", "batch_size"))
DRAWN = ("prompts", "sample_every")
SET_BY_PRESET = ("resolution", "density", "steps", "batch_size", "learning_rate", "adjust_at")


class TrainTab:
    """runner: of this WebUI; may_use_paths: whether whoever sits before the page may train on any folder

    chosen_checkpoint: the file of the checkpoint that is chosen in the page, which need not be loaded; None if that
        cannot be told
    """

    def __init__(self, runner: Runner, may_use_paths: bool, chosen_checkpoint: Callable[[], Path | None]):
        self.runner, self.may_use_paths, self.chosen_checkpoint = runner, may_use_paths, chosen_checkpoint
        self.inputs: dict[str, Any] = {}

    def build(self, page: gradio.Blocks) -> None:
        """Put the tab's parts where the page is being built."""
        host = self.runner.host
        with gradio.Row():
            with gradio.Column():
                self._folders()
                self.preset = gradio.Dropdown(
                    [NO_PRESET, *GOALS], value=NO_PRESET, label="Preset",
                    info="Fills in what suits the checkpoint and the number of pictures.",
                )  # fmt: skip
                for names in ROWS:
                    with gradio.Row():
                        self._add(names)
                with gradio.Accordion("Pictures in between", open=False):
                    self._add(DRAWN)
                with gradio.Accordion("More settings", open=False):
                    shown = {*DRAWN, *(name for names in ROWS for name in names)}
                    self._add(name for name in ALL if name not in shown)
                self.resume = gradio.Dropdown(
                    [NEW_RUN, *snapshot_names(host)], value=NEW_RUN, label="Resume",
                    info="A run that was stopped goes on exactly, with what was set for it then.",
                )  # fmt: skip
            with gradio.Column():
                with gradio.Row():
                    start = gradio.Button("Start", variant="primary")
                    stop = gradio.Button("Stop and keep")
                    finish = gradio.Button("Finish now")
                with gradio.Row():
                    save, draw = gradio.Button("Save now"), gradio.Button("Draw now")
                    follow, refresh = gradio.Button("Show the training"), gradio.Button("Refresh lists")
                asked = gradio.HTML()
                self.status = gradio.HTML()
                self.pictures = gradio.Gallery(label="Pictures in between", columns=4, elem_id="sara_samples")
        chosen = [self.folder, self.class_folder, self.resume]
        started = start.click(self.start, [*chosen, *self.inputs.values()], [self.status, self.pictures])
        followed = follow.click(self.follow, [], [self.status, self.pictures])
        for ended in (started, followed):
            # A training that was stopped says what to choose under Resume.
            ended.then(self.lists, [self.resume], chosen)
            # And no step comes any more after which what was asked for is done.
            ended.then(lambda: "", [], [asked])
        # The parts above are made once, when the WebUI starts, and a page may be loaded at any time after that.
        page.load(self.now, [], [self.status, self.pictures])
        page.load(self.lists, [self.resume], chosen)
        for button, wanted in ((stop, "stop"), (finish, "finish"), (save, "save"), (draw, "sample")):
            button.click(functools.partial(self.ask, wanted), [], [asked])
        refresh.click(self.lists, [self.resume], chosen)
        for one in (self.preset, self.folder):
            one.change(
                self.fill_in, [self.preset, self.folder], [*(self.inputs[name] for name in SET_BY_PRESET), asked]
            )

    def _folders(self) -> None:
        host, options = self.runner.host, {"allow_custom_value": self.may_use_paths}
        other = ", or the path of another one." if self.may_use_paths else "."
        self.folder = gradio.Dropdown(
            picture_folders(host), label="Folder of pictures", **options,
            info=f"A folder in {host.pictures}, with captions in .txt files of the pictures' names{other}",
        )  # fmt: skip
        self.class_folder = gradio.Dropdown(
            ["", *picture_folders(host)], value="", label="Folder of class pictures", **options,
            info="To learn a subject (DreamBooth): pictures of other things of its kind, so that the model does not "
            "forget them. Empty: none.",
        )  # fmt: skip

    def start(self, folder: str | None, class_folder: str | None, resume: str | None, *values: Any) -> Iterator[tuple]:
        """Begin a training, and show it until it is over."""
        given = {name: told(ALL[name], value) for name, value in zip(self.inputs, values)}
        given.update(folder=folder or "", class_folder=class_folder or "")
        if resume and resume != NEW_RUN:
            given = {"resume": resume}
        try:
            progress = self.runner.start(given, self.may_use_paths)
        except SaRAError as error:
            yield sentence(str(error), is_error=True), gradio.update()
            return
        yield from shown(progress)

    def now(self) -> tuple:
        """What is so while the page is loaded: once, as a page that is only left open is to wait for nothing."""
        found, pictures = next(self.follow())
        if self.runner.last is not None and not self.runner.last.is_over:
            found += sentence("Show the training follows it from here.")
        return found, pictures

    def follow(self) -> Iterator[tuple]:
        """Show the training that goes on, or went on last, as after the page was loaded anew."""
        if self.runner.last is None:
            yield sentence(NOTHING), []
        else:
            yield from shown(self.runner.last)

    def ask(self, wanted: str) -> str:
        """Ask the training for something; returns what to say."""
        try:
            self.runner.ask(wanted)
        except SaRAError as error:
            return sentence(str(error), is_error=True)
        return sentence("That is done after this step.")

    def lists(self, resume: str | None) -> tuple:
        """What there is to choose from by now. resume: what is chosen, which a newer snapshot may have replaced"""
        host = self.runner.host
        folders, snapshots = picture_folders(host), [NEW_RUN, *snapshot_names(host)]
        gone = {} if resume in snapshots else {"value": NEW_RUN}
        return (
            gradio.update(choices=folders), gradio.update(choices=["", *folders]),
            gradio.update(choices=snapshots, **gone),
        )  # fmt: skip

    def fill_in(self, goal: str, folder: str | None) -> tuple:
        """The inputs that a preset sets, and the reasons."""
        if goal not in GOALS:
            return *(gradio.update() for _ in SET_BY_PRESET), ""
        chosen = preset(goal, self._outline(), self._pictures(folder))
        reasons = [_reason(name, choice) for name, choice in chosen.items()]
        return *(gradio.update(value=chosen[name].value) for name in SET_BY_PRESET), report("\n".join(reasons))

    def _outline(self) -> Outline | None:
        """Of what would be trained: the file's, as what is loaded may be what was chosen before."""
        if (file := self.chosen_checkpoint()) is not None and (told := outline_of_file(file)) is not None:
            return told
        unet = self.runner.host.loaded_unet()
        return unet and outline_of({name: tuple(weight.shape) for name, weight in unet.named_parameters()})

    def _pictures(self, folder: str | None) -> int | None:
        """How many there are; captions may come with the trigger word."""
        try:
            share = Share(self.runner.folder(folder or "", self.may_use_paths))
            return len(read_folders([share], Captioning(takes_any=True)).images)
        except SaRAError:
            return None

    def _add(self, names) -> None:
        for name in names:
            self.inputs[name] = component(name, ALL[name])


def _reason(name: str, choice: Choice) -> str:
    """What a preset has set, and why; where 0 stands for a rule, the reason says for which."""
    said = f"{choice.why}" if choice.value == 0 else f"{choice.value or 'none'} ({choice.why})"
    return f"{name.replace('_', ' ')}: {said}"


def shown(progress: Progress) -> Iterator[tuple]:
    """The view and the pictures of a training, again and again until it is over."""
    seen: dict | None = None
    while True:
        is_over, drawn = progress.is_over, progress.drawn
        pictures = gradio.update() if drawn == seen else _opened(drawn)
        seen = drawn
        yield progress_view(progress), pictures
        if is_over:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _opened(drawn: dict) -> list[tuple]:
    """Each picture and its title, the newest first; those that somebody has deleted meanwhile are left out."""
    found = []
    for step, paths in sorted(drawn.items(), reverse=True):
        for path in paths:
            with contextlib.suppress(FileNotFoundError), Image.open(path) as picture:
                found.append((picture.convert("RGB"), f"step {step}"))
    return found
