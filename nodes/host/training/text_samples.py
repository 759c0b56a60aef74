"""Images whose captions stay texts: what the model is given of them is made anew for each batch, by text encoders that
are being trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....sara_core.data.denoising_loss import Sample
from ....sara_core.errors import TrainingError
from .dataset import HostSample, conditions_of, scaled_images, tensors_on
from .denoiser import Denoiser
from .network import HostNetwork
from .pairing import Pairs
from .text_encoders import EncodersInTraining

EMPTY_CAPTION = ""


@dataclass(frozen=True)
class TextSample(Sample):
    """conditions: "text" → the caption, "options" → what belongs to the image beside it, as of a CONDITIONING entry;
    mask: as a HostSample's"""

    mask: torch.Tensor | None = None


@torch.no_grad()
def prepare_texts(
    patcher, encoders: EncodersInTraining, pairs: Pairs, unconditional: list | None = None, drops: bool = False
) -> list[TextSample]:
    """The images of `pairs`, scaled, with their texts.

    unconditional: CONDITIONING entry whose options an image without its caption has beside its own
    drops: whether captions are dropped

    The samples stay on the patcher's offload device. To be called outside inference mode. TrainingError if an image
    does not fit the MODEL, or the CLIP is another one than that which has encoded the captions of `pairs`.
    """
    _check_width(pairs, encoders)
    samples = []
    for (latent, mask), (_, options), text in zip(scaled_images(patcher, pairs), pairs.captions, pairs.texts):
        latent, mask = tensors_on(patcher.offload_device, (latent, mask))
        empty = None
        if drops:
            of_empty = {} if unconditional is None else unconditional[1]
            empty = {"text": EMPTY_CAPTION, "options": {**options, **of_empty}}
        samples.append(TextSample(latent, {"text": text, "options": options}, empty, mask))
    return samples


def _check_width(pairs: Pairs, encoders: EncodersInTraining) -> None:
    expected, made = pairs.captions[0][0], encoders.encoded(EMPTY_CAPTION)[0]
    if expected.shape[-1] != made.shape[-1]:
        raise TrainingError(
            f"'clip' makes {made.shape[-1]} numbers of a word, the captions of 'positive' have {expected.shape[-1]}: "
            "connect the CLIP that belongs to the MODEL, and encode 'positive' with it."
        )


class TextNetwork(HostNetwork):
    """A HostNetwork of samples that are TextSamples. seed: what the host's preparation of a caption gets"""

    def __init__(self, denoiser: Denoiser, encoders: EncodersInTraining, seed: int):
        super().__init__(denoiser)
        self.encoders, self.seed = encoders, seed

    def given(self, samples: Sequence[TextSample]) -> list[HostSample]:
        entries = self.encoders.all_encoded(sample.conditions["text"] for sample in samples)
        return [self._given(sample, *entries[sample.conditions["text"]]) for sample in samples]

    def _given(self, sample: TextSample, encoded: torch.Tensor, options: dict) -> HostSample:
        patcher = self.denoiser.patcher
        device = patcher.load_device
        latent, mask = tensors_on(device, (sample.latent, sample.mask))
        caption = [encoded, {**sample.conditions["options"], **options}]
        conditions = conditions_of(patcher, latent, caption, self.seed, mask, device)
        return HostSample(latent, conditions, mask=mask)
