"""What training data may be and is rarely meant to be: said before the first step, and trained on all the same."""

from collections.abc import Iterator, Sequence

import torch

from ....sara_core.wording import Sentence
from .masks import learned
from .pairing import Pairs, TrainingData, counted_images, digest_of

# From so many images on, one caption for all is more often a forgotten connection than a subject's name.
MANY_IMAGES = 30
NAMED_AT_MOST = 5


def doubts(data: TrainingData) -> Iterator[tuple[str, Sentence]]:
    """(kind, text) of each doubt about images and captions: what is odd, what comes of it, what helps."""
    for pairs in (data.images, None if data.keeps_own else data.class_images):
        if pairs and (empty := _empty(pairs)):
            yield f"empty {pairs.kind}s", _emptiness(pairs, empty)
    if len(data.images) >= MANY_IMAGES and _all_alike(data.images.texts or data.images.captions):
        yield "captions", Sentence(
            "All {count} images have the same caption: what differs between them is learned as if it were the "
            "same, and no words call for it. If the images have captions of their own, connect one for each.",
            count=len(data.images),
        )


def _empty(pairs: Pairs) -> list[int]:
    """Which images, from 1, hold one value in each channel wherever something is to be learned."""
    masks = pairs.masks or [None] * len(pairs)
    return [number for number, pair in enumerate(zip(pairs.images, masks), start=1) if _is_even(*pair)]


def _is_even(image: torch.Tensor, mask: torch.Tensor | None) -> bool:
    part = torch.ones_like(image, dtype=torch.bool) if mask is None else learned(mask) > 0
    return all(
        bool((values[chosen] == values[chosen][:1]).all()) and int(chosen.sum()) != 1
        for values, chosen in zip(image.flatten(0, 1), part.flatten(0, 1))
    )


def _emptiness(pairs: Pairs, empty: list[int]) -> Sentence:
    named = ", ".join(map(str, empty[:NAMED_AT_MOST])) + (" …" if len(empty) > NAMED_AT_MOST else "")
    images = counted_images(len(empty), pairs.kind)
    which = Sentence("{images} of {all} ({numbers})", images=images, all=len(pairs), numbers=named)
    if pairs.masks and pairs.masks[empty[0] - 1] is not None:
        return Sentence(
            "Where the noise mask is 1, the latents of {which} hold the same everywhere, as from a node that "
            "leaves this to the sampler: the model learns to make nothing there. Give the whole video, from VAE "
            "Encode, that node's mask: Latent Blend with blend_factor 0, the node's latents as samples1, the "
            "video's as samples2.", which=which,
        )
    return Sentence(
        "The latents of {which} hold the same everywhere, as from an Empty Latent node: the model learns to make "
        "nothing. Connect the latents of pictures, from VAE Encode.", which=which,
    )


def _all_alike(captions: Sequence[list | str]) -> bool:
    """Whether all are the same, with what belongs to them, as a picture."""
    first = captions[0]
    expected = digest_of(first)
    return all(caption is first or digest_of(caption) == expected for caption in captions)
