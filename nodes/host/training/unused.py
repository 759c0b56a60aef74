"""Trained weights that a model has but does not use: the text half of Qwen-Image's last block, what reads CLIP's view
of the picture in Wan image-to-video where the captions carry none, or an expert to which nothing of a batch went."""

import logging
import math
from collections.abc import Callable

import torch

from ....sara_core.backward.store import Store
from ....sara_core.training.optimizer import check_all_reached


def check_used_weights_reached(store: Store, make_loss: Callable[[], Callable[[], torch.Tensor]]) -> None:
    """Raise TrainingError, naming them, if a backward has passed by weights that the loss depends on. Weights that it
    does not depend on are named in the log, and count as reached from then on: their change is 0 in the delta, unless
    later images need them.

    make_loss: returns a function that computes the same loss each time; called only if weights were passed by
    """
    missing = [number for number, reached in enumerate(store.reached) if not reached]
    if not missing:
        return
    if _loss_depends_on(store, missing, make_loss()):
        check_all_reached(store)
    names = [store.support.segments[number].name for number in missing]
    logging.info(
        f"SaRA: {len(names)} of {len(store.support)} weights have no part in what the model makes of the first images "
        f"and captions, and stay as they are as long as that is so: {', '.join(names)}"
    )
    for number in missing:
        store.reached[number] = True


@torch.no_grad()
def _loss_depends_on(store: Store, numbers: list[int], loss) -> bool:
    """Whether the loss notices when the trained elements of these weights are not numbers any more."""
    before = loss().item()
    kept = store.values.clone()
    try:
        for number in numbers:
            store.values[store.support.segments[number].span] = math.nan
        store.write()
        return loss().item() != before
    finally:
        store.values.copy_(kept)
        store.write()
