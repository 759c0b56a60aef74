"""All cases, and those of a class that the host has registered."""

from . import others, pictures, unets, videos
from .case import Case

CASES: list[Case] = [*unets.CASES, *pictures.CASES, *videos.CASES, *others.CASES]


def cases_of(config: type) -> list[Case]:
    """The cases of one of the host's configuration classes; of a class that came later, those of the class that it is
    derived from, with its own unet_config; none where nobody has made any."""
    for base in config.__mro__:
        of_base = [case for case in CASES if case.config == base.__name__]
        if of_base:
            return of_base
    return []
