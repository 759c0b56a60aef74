"""What a VAE has decoded → what is shown and kept: a picture as PNG; a sound as WAV, with a picture of its wave."""

import io
import wave
from dataclasses import dataclass

import numpy
import torch
from PIL import Image

from ....sara_core.errors import TrainingError

COLOURS = (3, 4)
WAVE_SIZE = (512, 128)


@dataclass(frozen=True)
class Preview:
    """picture: to be shown; content: the bytes of the file that is kept; suffix: of its name"""

    picture: Image.Image
    content: bytes
    suffix: str


def preview(decoded: torch.Tensor, sample_rate: int) -> Preview:
    """Of the first picture of a batch [batch, (frames,) height, width, colours], values 0 to 1; or of the first sound
    [batch, moments, channels], values -1 to 1, with so many moments a second. Raises TrainingError for anything else.
    """
    if decoded.ndim == 3:
        return _sound(_bytes_of(decoded[0].float().clamp(-1, 1) * 32767, torch.int16), sample_rate)
    if decoded.ndim not in (4, 5) or decoded.shape[-1] not in COLOURS:
        raise TrainingError(
            "The VAE of SaRA Train Samples decodes to something that is neither a picture nor a sound: train without "
            "samples."
        )
    first = decoded.reshape(-1, *decoded.shape[-3:])[0]  # of a video, its first frame
    picture = Image.fromarray(_bytes_of(first.clamp(0, 1) * 255, torch.uint8))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return Preview(picture, content.getvalue(), ".png")


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """One row of pictures of equal size."""
    row = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return row


def _sound(moments: numpy.ndarray, sample_rate: int) -> Preview:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(moments.shape[1])
        file.setsampwidth(moments.itemsize)
        file.setframerate(sample_rate)
        file.writeframes(moments.astype("<i2").tobytes())
    return Preview(_wave_picture(moments), content.getvalue(), ".wav")


def _wave_picture(moments: numpy.ndarray) -> Image.Image:
    """How loud it is from its beginning to its end."""
    width, height = WAVE_SIZE
    loudness = numpy.abs(moments.astype(numpy.float32)).max(axis=1) / 32767
    columns = numpy.array([part.max(initial=0.0) for part in numpy.array_split(loudness, width)])
    from_the_middle = numpy.abs(numpy.linspace(-1, 1, height))
    return Image.fromarray(numpy.where(from_the_middle[:, None] <= columns, 0, 255).astype(numpy.uint8)).convert("RGB")


def _bytes_of(values: torch.Tensor, dtype: torch.dtype) -> numpy.ndarray:
    return values.round().to("cpu", dtype).numpy()
