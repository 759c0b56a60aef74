"""LATENT and CONDITIONING as they come off the wires → images, each with its caption."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ....sara_core.errors import TrainingError, UnsupportedModelError
from ....sara_core.wording import Sentence, amount, counted
from ..encoding import PICTURE
from .masks import image_masks

# What a caption may carry that training does not follow: key in the conditioning → the user's word for it.
UNSUPPORTED_CONDITIONING = {
    "control": "ControlNet",
    "gligen": "GLIGEN",
    "hooks": "hooks (scheduled LoRAs)",
    "area": "an area",
    "mask": "a mask",
}
# Part of the sampling steps that a caption is for: key → its value when it is for all of them.
WHOLE_RANGE = {"start_percent": 0.0, "end_percent": 1.0, "clip_start_percent": 0.0, "clip_end_percent": 1.0}

CLASS_IMAGE = "class image"


@dataclass(frozen=True)
class Pairs:
    """images: [1, channels, *size] each, as the VAE made them; captions: one CONDITIONING entry [tensor, options] per
    image, the same object for all images that share it; kind: "image" or "class image", for messages; masks: of each
    image's shape, or None, one per image, or none at all; texts: of the captions, one per image, where text encoders
    are trained, or none at all; pictures: of each image the name of what it shows, or None, or none at all"""

    images: list[torch.Tensor]
    captions: list[list]
    kind: str = "image"
    masks: Sequence[torch.Tensor | None] = ()
    texts: Sequence[str] = ()
    pictures: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def largest(self) -> torch.Tensor:
        """The image with the most elements."""
        return max(self.images, key=torch.Tensor.numel)

    def describe(self) -> str:
        """"24 images of 3 sizes, each with its own caption, 2 with a mask"."""
        sizes = len({image.shape for image in self.images})
        shared = len(set(self.texts or map(id, self.captions))) == 1
        captions = "one caption for all" if shared else "each with its own caption"
        masked = sum(mask is not None for mask in self.masks)
        masks = f", {masked} with a mask" if masked else ""
        return f"{counted(len(self), self.kind)} of {counted(sizes, 'size')}, {captions}{masks}"


@dataclass(frozen=True)
class TrainingData:
    """images and class_images as paired; unconditional: CONDITIONING entry of the empty caption, if captions are
    dropped; held_out: images that are not trained on, None for none; keeps_own: whether class_images are the images
    themselves under captions that are to go on meaning to the model what they do before the training"""

    images: Pairs
    class_images: Pairs | None = None
    unconditional: list | None = None
    held_out: Pairs | None = None
    keeps_own: bool = False

    def batch_shape(self, batch_size: int) -> torch.Size:
        """Shape of the largest batch of latents that goes through the model at once."""
        sets = [pairs for pairs in (self.images, self.class_images) if pairs]
        largest = max((pairs.largest for pairs in sets), key=torch.Tensor.numel)
        return torch.Size((batch_size * len(sets), *largest.shape[1:]))

    def describe(self, steps: int, images_per_step: int) -> str:
        """What will be trained on, in one line for the log and the node."""
        parts = [self.images.describe()]
        if self.keeps_own:
            parts.append("the model is kept near what it makes of them under other captions")
        elif self.class_images:
            parts.append(self.class_images.describe())
        if self.held_out:
            parts.append(f"{counted(len(self.held_out), 'image')} held out")
        times = steps * images_per_step / len(self.images)
        parts.append(f"{counted(steps, 'step')} of {counted(images_per_step, 'image')} show each {times:.3g} times")
        return "; ".join(parts)

    def digest(self) -> str:
        """Identity of the images, captions and masks, in their order: hex digest of all that they are made of."""
        sets = [pairs for pairs in (self.images, self.class_images) if pairs]
        parts = [[[pairs.images, pairs.captions] for pairs in sets] + [self.unconditional]]
        if any(pairs.masks for pairs in sets):  # without any, the digest is that of versions that knew none
            parts.append([pairs.masks for pairs in sets])
        if self.images.texts:
            parts.append([pairs.texts for pairs in sets])
        if self.keeps_own:
            parts.append("keeps own")
        return digest_of(*parts)


def digest_of(*parts) -> str:
    """Hex digest of all tensors, texts and numbers in these, in their order."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        _add(result, part)
    return result.hexdigest()


def _add(result, value) -> None:
    if isinstance(value, torch.Tensor):
        result.update(repr(tuple(value.shape)).encode())
        result.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        _add(result, sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(result, item)
    elif isinstance(value, (str, int, float, bool, type(None))):
        result.update(repr(value).encode())


def read_training_data(
    latents: list[dict], positive: list, unconditional: list = (), class_latents: list[dict] = (),
    class_positive: list = (), caption_dropout: float = 0.0,
) -> TrainingData:
    """The node's inputs, lists each; those left open are empty. With class captions alone the model is to stay what it
    is under these. Raises TrainingError if something does not match or is missing, UnsupportedModelError for what
    cannot be trained on."""
    if class_latents and not class_positive:
        raise TrainingError(Sentence(
            "'{connected}' is connected but '{missing}' is not: class images need their captions too. Connect them, or "
            "neither.", connected="class_latents", missing="class_positive",
        ))  # fmt: skip
    class_images = None
    if class_latents:
        class_images = pair(class_latents, class_positive, CLASS_IMAGE)
    elif class_positive:
        class_images = pair(latents, class_positive)
    return TrainingData(
        pair(latents, positive), class_images, _empty_caption(unconditional) if caption_dropout else None,
        keeps_own=bool(class_positive) and not class_latents,
    )  # fmt: skip


def pair(latents: list[dict], positive: list, kind: str = "image") -> Pairs:
    """LATENTs, batched or not, of any sizes, and their CONDITIONINGs.

    One caption serves all images. With as many CONDITIONINGs as LATENTs, each belongs to its LATENT: one caption for
    all its images or one each, as from Resolution Bucket. Otherwise there must be one caption per image, in order.
    """
    images = [_images(latent) for latent in latents]
    flat_images = sum(images, [])
    if not flat_images:
        raise TrainingError(Sentence(
            "There is no class image to train on: connect the latents of at least one class image."
            if kind == CLASS_IMAGE else "There is no image to train on: connect the latents of at least one image."
        ))  # fmt: skip
    captions = _one_caption_each(images, [_captions(conditioning) for conditioning in positive], kind)
    masks = sum((image_masks(latent, kind) for latent in latents), [])
    pictures = sum((_pictures(latent) for latent in latents), [])
    return Pairs(
        flat_images, captions, kind, masks if any(mask is not None for mask in masks) else (), pictures=pictures
    )


def _one_caption_each(images: list[list], captions: list[list], kind: str) -> list[list]:
    flat_images, flat_captions = sum(images, []), sum(captions, [])
    if len(flat_captions) == 1:
        return flat_captions * len(flat_images)
    if len(captions) != len(images):
        _check_counts(flat_images, flat_captions, kind)
        return flat_captions
    together = []
    for number, (some_images, some_captions) in enumerate(zip(images, captions), start=1):
        if len(some_captions) == 1:
            some_captions = some_captions * len(some_images)
        where = Sentence(" in part {number} of the lists", number=number) if len(images) > 1 else ""
        _check_counts(some_images, some_captions, kind, where)
        together += some_captions
    return together


def with_texts(pairs: Pairs, texts: list[str], source: str) -> Pairs:
    """The pairs with their captions as texts: one per image, in order, or one for all.

    source: the input that they come from, for messages. TrainingError if there are others than that.
    """
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TrainingError(Sentence(
            "'{input}' holds no texts: text encoders are trained on the captions as they are written. Connect the "
            "texts of the images, or one text for all.", input=source,
        ))  # fmt: skip
    texts = texts * len(pairs) if len(texts) == 1 else texts
    _check_counts(pairs.images, texts, pairs.kind)
    return replace(pairs, texts=texts)


def _check_counts(images: list, captions: list, kind: str, where: Sentence | str = "") -> None:
    if len(images) != len(captions):
        raise TrainingError(Sentence(
            "{images} but {captions} captions{where}. Give every image its own caption (a .txt file of the same name), "
            "or one caption for all.", images=counted_images(len(images), kind), captions=len(captions), where=where,
        ))  # fmt: skip


def counted_images(count: int, kind: str) -> Sentence:
    """1, "image" → "1 image"; 2, "class image" → "2 class images"."""
    if kind == CLASS_IMAGE:
        return amount(count, "1 class image", "{count} class images")
    return amount(count, "1 image", "{count} images")


def _images(latent: dict) -> list[torch.Tensor]:
    samples = latent["samples"]
    if not isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False):
        raise UnsupportedModelError("Latents of several kinds at once (video with sound) cannot be trained on yet.")
    return [samples[number:number + 1].detach() for number in range(len(samples))]


def _pictures(latent: dict) -> list[str | None]:
    """Of a batch none is known: the host's nodes that join LATENTs keep all else of the first."""
    count, name = len(latent["samples"]), latent.get(PICTURE)
    return [name] if count == 1 and isinstance(name, str) else [None] * count


def _captions(conditioning: list) -> list[list]:
    for tensor, options in conditioning:
        if tensor is not None and tensor.shape[0] != 1:
            raise UnsupportedModelError(Sentence(
                "A CONDITIONING holds {count} captions in one batch, which cannot be matched to the images: encode "
                "each caption by itself, as a list.", count=tensor.shape[0],
            ))  # fmt: skip
        carried = [what for key, what in UNSUPPORTED_CONDITIONING.items() if options.get(key) is not None]
        carried += ["a range of steps" for key, whole in WHOLE_RANGE.items() if options.get(key, whole) != whole]
        if carried:
            raise UnsupportedModelError(Sentence(
                "The conditioning carries {what}, which training cannot follow: connect the captions directly.",
                what=carried[0],
            ))  # fmt: skip
    return list(conditioning)


def _empty_caption(unconditional: list) -> list:
    captions = sum((_captions(conditioning) for conditioning in unconditional), [])
    if not captions:
        raise TrainingError(Sentence(
            "caption_dropout is above 0, but there is nothing to put in place of the captions: connect a CLIP Text "
            "Encode with empty text to 'unconditional', or set caption_dropout to 0."
        ))  # fmt: skip
    if len(captions) > 1:
        raise TrainingError(Sentence(
            "'unconditional' has {count} captions: connect a single CLIP Text Encode with empty text.",
            count=len(captions),
        ))  # fmt: skip
    return captions[0]
