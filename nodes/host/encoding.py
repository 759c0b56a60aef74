"""Pictures and captions as the host encodes them, each once: what VAE Encode and CLIP Text Encode give."""

from collections.abc import Callable, Sequence

import torch

# Of a LATENT: which picture it shows, so that its mirror image is known again. The latent of a mirrored picture is not
# the mirrored latent.
PICTURE = "sara_picture"
OnEach = Callable[[int, int], None]  # is called with how many are done, and of how many


def encoded_pictures(vae, pictures: Sequence[torch.Tensor], names: Sequence[str], on_each: OnEach) -> list[dict]:
    """A LATENT for each picture; the same object for the same tensor.

    pictures: fp32 [1, height, width, 3], 0 … 1; names: of what each shows, equal for a picture and its mirror image
    """
    different = {id(picture): (picture, name) for picture, name in zip(pictures, names, strict=True)}
    latents = {}
    for number, (key, (picture, name)) in enumerate(different.items(), start=1):
        latents[key] = {"samples": vae.encode(picture), PICTURE: name}
        on_each(number, len(different))
    return [latents[id(picture)] for picture in pictures]


def encoded_captions(clip, captions: Sequence[str], on_each: OnEach) -> list[list]:
    """A CONDITIONING for each caption; the same object for the same text."""
    different = list(dict.fromkeys(captions))
    conditionings = {}
    for number, caption in enumerate(different, start=1):
        conditionings[caption] = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
        on_each(number, len(different))
    return [conditionings[caption] for caption in captions]
