"""What a training of text encoders takes beside images and CONDITIONINGs: the CLIP, and the captions as texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ....sara_core.errors import TrainingError
from ....sara_core.training.record import RunSettings
from ....sara_core.wording import Sentence
from .pairing import TrainingData, with_texts
from .parts import DIFFUSION_MODEL, TEXT_ENCODERS, TRAINED
from .text_encoders import check_trainable_clip


@dataclass(frozen=True)
class TextRunSettings(RunSettings):
    """Settings of a run that trains text encoders.

    train: which models, one of TRAINED; clip_layer: at which the CLIP stops, as CLIP Set Last Layer sets it, None for
        the CLIP's own
    """

    train: str
    clip_layer: int | None


def check_asked_for(inputs: Mapping, given: Mapping[str, Sequence]) -> None:
    """Raise TrainingError if what is to be trained, and what is connected for it, do not match, UnsupportedModelError
    for a CLIP that is not trained.

    inputs: "train" and, where connected, "clip" and "samples"; given: the lists of "captions", "class_captions" and
        "class_positive"
    """
    train, clip = inputs["train"], inputs.get("clip")
    texts = [name for name in ("captions", "class_captions") if given[name]]
    connected = texts if clip is None else ["clip", *texts]
    if not trains_text(train):
        if connected:
            raise TrainingError(Sentence(
                "'{input}' is connected, but no text encoder is trained: choose 'diffusion model and text "
                "encoders' or 'text encoders' under 'train' of SaRA Train Options, or disconnect it.",
                input=connected[0],
            ))  # fmt: skip
        return
    needed = ["clip", "captions", *(["class_captions"] if given["class_positive"] else [])]
    if missing := [name for name in needed if name not in connected]:
        raise TrainingError(Sentence(
            "'{input}' is not connected: text encoders are trained with a CLIP and with captions as text, of the "
            "class images too. Connect it, or choose 'diffusion model' under 'train' of SaRA Train Options.",
            input=missing[0],
        ))  # fmt: skip
    if "class_captions" in connected and not given["class_positive"]:
        raise TrainingError("'class_captions' is connected but 'class_positive' is not: connect both, or neither.")
    check_trainable_clip(clip)
    if DIFFUSION_MODEL not in TRAINED[train] and "samples" in inputs:
        raise TrainingError(
            "The captions of SaRA Train Samples are encoded before the training, so its pictures cannot show what text "
            "encoders learn: disconnect 'samples', or train the diffusion model too."
        )


def trains_text(train: str) -> bool:
    """Whether this choice has text encoders trained."""
    return TEXT_ENCODERS in TRAINED[train]


def with_captions(data: TrainingData, captions: list[str], class_captions: list[str]) -> TrainingData:
    """The data with the texts of its captions. TrainingError if there are not as many as images."""
    of_class = data.class_images and with_texts(data.class_images, class_captions, "class_captions")
    return replace(data, images=with_texts(data.images, captions, "captions"), class_images=of_class)
