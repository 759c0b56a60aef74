"""Which noise levels of a MODEL a training takes, where its settings leave that to the model."""

import logging
from collections.abc import Mapping

from ....sara_core.data.noise_levels import AUTOMATIC, FLOOR_OF_X0, noise_range

# What the host registers in its networks in pixel space that say the clean picture.
_SAYS_X0 = "__x0__"
# HiDream-O1 always does.
_ALWAYS_X0 = "HiDreamO1"


def host_noise_range(scalars: Mapping) -> tuple[float, float]:
    """The least and the most σ of a training with these inputs of SaRA Train and its options; 0 is no end.

    The log says where it has a floor that nobody asked for.
    """
    preset, least, most = (scalars[name] for name in ("noise_range", "noise_from", "noise_to"))
    floor = FLOOR_OF_X0 if says_clean_picture(scalars["model"]) else 0.0
    if floor and preset == AUTOMATIC and not least:
        logging.info(
            f"SaRA: noise below {floor} is not trained, because this model predicts the clean picture: almost clean "
            "ones would be all that counts. noise_range = all trains every level."
        )
    return noise_range(preset, least, most, floor)


def says_clean_picture(model) -> bool:
    """Whether a MODEL's network says the clean picture, from which the host makes a velocity by dividing by σ."""
    kinds = {kind.__name__ for kind in type(model.model).__mro__}
    return hasattr(model.model.diffusion_model, _SAYS_X0) or _ALWAYS_X0 in kinds
