"""SaRA Dataset: folders of pictures, each with its caption, as a training takes them."""

import logging
from collections.abc import Callable

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sara_core.data.buckets import STEP
from ..sara_core.data.captioning import Captioning
from ..sara_core.data.dataset import read_folders, read_pictures
from ..sara_core.data.doubts import doubts
from ..sara_core.errors import SaRAError
from ..sara_core.wording import counted
from .checks import checked_inputs, refusal
from .host import datasets
from .host.encoding import encoded_captions, encoded_pictures
from .host.progress import show_text, shown_progress

_MISSING = "SaRA Dataset has no {0}: connect one to its {0} input."


class SaRADataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaRADataset",
            display_name="SaRA Dataset",
            category="model/training",
            description="Pictures and captions to train on, from folders or dropped on the node, where the captions "
            "can be written too. Pictures are turned, cut and encoded as SaRA Train takes them.",
            search_aliases=["load dataset", "training images", "captions", "train lora", "load images from folder"],
            hidden=[io.Hidden.unique_id],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="The pictures as they are trained."
                ),
                io.String.Output(
                    display_name="captions", is_output_list=True,
                    tooltip="A caption for each picture, with the trigger word before it.",
                ),
                io.String.Output(display_name="trigger", tooltip="The trigger word, for prompts and for SaRA Save."),
                io.String.Output(display_name="summary", tooltip="What is trained on, and what is odd about it."),
                io.Latent.Output(
                    display_name="latents", is_output_list=True,
                    tooltip="The pictures, encoded by the VAE: for latents of SaRA Train.",
                ),
                io.Conditioning.Output(
                    display_name="conditioning", is_output_list=True,
                    tooltip="The captions, encoded by the CLIP: for positive of SaRA Train.",
                ),
                io.String.Output(
                    display_name="plain", is_output_list=True,
                    tooltip="The captions without the trigger word. By way of CLIP Text Encode to class_positive of "
                    "SaRA Train they keep the model as it was without that word.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folders=None, resolution=None) -> bool | str:
        refused = refusal(cls, folders=folders, resolution=resolution)
        if refused is True and folders is not None:
            try:
                datasets.shares(folders)
            except SaRAError as error:
                return str(error)
        return refused

    @classmethod
    def fingerprint_inputs(cls, folders=None, **others) -> str:
        return datasets.fingerprint(folders) if isinstance(folders, str) else ""

    @classmethod
    @checked_inputs
    def execute(cls, folders, trigger, caption, resolution, buckets, flip, vae=None, clip=None) -> io.NodeOutput:
        captioning = Captioning(trigger, caption, takes_any=True)
        found = read_folders(datasets.shares(folders), captioning, flip)
        captions = [image.caption for image in found.images]
        steps = _Steps(cls, 1 + (vae is not None) + (clip is not None))
        pictures = read_pictures(found.images, resolution, buckets, steps.begun("picture"))
        images = _batches_of_one(pictures.pixels)
        latents = conditioning = None
        if vae is not None:
            names = [str(image.path) for image in found.images]
            latents = encoded_pictures(vae, images, names, steps.begun("encoded picture"))
        if clip is not None:
            conditioning = encoded_captions(clip, captions, steps.begun("caption"))
        odd = doubts(found.images)
        for doubt in odd:
            logging.warning(f"SaRA: {doubt}")
        files = len({image.path for image in found.images})
        shown = "" if len(images) == files else f", shown as {len(images):,}"
        summary = "\n".join([f"{counted(files, 'picture')}{shown}", *odd, *pictures.lines, *found.left_over()])
        show_text(cls, summary)
        return io.NodeOutput(
            images, captions, trigger.strip(), summary,
            ExecutionBlocker(_MISSING.format("vae")) if latents is None else latents,
            ExecutionBlocker(_MISSING.format("clip")) if conditioning is None else conditioning,
            list(map(captioning.without_trigger, captions)),
        )  # fmt: skip


def _inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "folders", default="", multiline=True, placeholder="folders inside ComfyUI's input folder, or paths",
            tooltip="Folders of pictures, one a line: a name inside ComfyUI's input folder, or a whole path. Captions "
            "are .txt files of the pictures' names. 'dog | 3' shows the pictures of dog three times as often.",
        ),
        io.String.Input(
            "trigger", default="",
            tooltip="A word that calls for what is learned, like ohwx: put before every caption that does not have it.",
        ),
        io.String.Input(
            "caption", default="", tooltip="The caption of all pictures that have none of their own.",
        ),
        io.Int.Input(
            "resolution", default=512, min=STEP, max=4096, step=STEP,
            tooltip="Pictures are cut and scaled to about as many pixels as a square of this side has: 512 for SD1.5, "
            "1024 for SDXL, SD3 and Flux.",
        ),
        io.Boolean.Input(
            "buckets", default=True,
            tooltip="Each picture is cut as little as possible, to one of several shapes. Off: all become squares.",
        ),
        io.Boolean.Input(
            "flip", default=False,
            tooltip="Each picture is also shown with left and right exchanged. Not for faces, or where there is text.",
        ),
        io.Vae.Input("vae", optional=True, tooltip="Encodes the pictures for SaRA Train, which saves VAE Encode."),
        io.Clip.Input(
            "clip", optional=True, tooltip="Encodes the captions for SaRA Train, which saves CLIP Text Encode."
        ),
    ]  # fmt: skip


def _batches_of_one(pixels: list) -> list:
    """Images as the host has them; the same object where they are the same picture."""
    batches = {id(picture): picture[None] for picture in pixels}
    return [batches[id(picture)] for picture in pixels]


class _Steps:
    """One bar, and one line of text, for several things that are done one after the other, each as long as the other.

    Cancel ends them: the bar raises what the host raises then.
    """

    def __init__(self, node_class: type, count: int):
        self.node_class, self.count, self.begun_so_far = node_class, count, 0
        self.bar = shown_progress()

    def begun(self, what: str) -> Callable[[int, int], None]:
        """What is to be called with how many of `what` are done, and of how many."""
        before = self.begun_so_far
        self.begun_so_far += 1

        def on_each(done: int, total: int) -> None:
            show_text(self.node_class, f"{what} {done} of {total}")
            self.bar(before * total + done, self.count * total)

        return on_each
