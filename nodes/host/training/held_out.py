"""What SaRA Train keeps out of its pictures, to say how it does on some that it is not trained on."""

from collections.abc import Collection
from dataclasses import replace
from itertools import repeat

from ....sara_core.data.held_out import chosen_pictures
from ....sara_core.errors import TrainingError
from ....sara_core.wording import counted
from .pairing import Pairs, TrainingData, digest_of


def hold_out(data: TrainingData, count: int, seed: int) -> TrainingData:
    """The data with `count` of its pictures, chosen by the seed, held out: the same data for 0.

    A picture that is there several times counts as one; so do it and its mirror image, where the LATENTs say that they
    are. Raises TrainingError if none would be left to train on.
    """
    if not count:
        return data
    kinds = _kinds(data.images)
    if count >= (different := len(set(kinds))):
        raise TrainingError(
            f"held_out is {count}, but there {'is' if different == 1 else 'are'} only "
            f"{counted(different, 'different picture')}: hold out fewer, so that some are left to train on."
        )
    chosen = set(chosen_pictures(kinds, count, seed))
    others = set(range(len(kinds))) - chosen
    # One of each, the first, which is not mirrored: how often a picture is shown says nothing of how well it is drawn.
    chosen = {kinds[place]: place for place in sorted(chosen, reverse=True)}.values()
    # Images under other captions are the same ones, and not to be seen under those either.
    of_class = _only(data.class_images, others) if data.keeps_own else data.class_images
    return replace(data, images=_only(data.images, others), class_images=of_class, held_out=_only(data.images, chosen))


def _kinds(pairs: Pairs) -> list[str]:
    """Equal for equal images, and for those that show the same picture."""
    first: dict[str, str] = {}
    kinds = []
    for image, picture in zip(pairs.images, pairs.pictures or repeat(None)):
        digest = digest_of(image)
        kinds.append(digest if picture is None else first.setdefault(picture, digest))
    return kinds


def _only(pairs: Pairs, places: Collection[int]) -> Pairs:
    """Those of the pairs that stand at these places."""
    parts = {name: [part[place] for place in sorted(places)] if (part := getattr(pairs, name)) else ()
             for name in ("images", "captions", "masks", "texts", "pictures")}  # fmt: skip
    return replace(pairs, **parts)
