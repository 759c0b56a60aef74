"""What the face says in the WebUI's console, through a logger of its own."""

import logging

log = logging.getLogger("sara")


def speak_through(parent: logging.Logger) -> None:
    """Be heard where this one is, and with warnings where it lets nothing but errors pass, as those of some hosts do.
    """
    log.parent = parent
    log.setLevel(min(logging.WARNING, parent.getEffectiveLevel()))


speak_through(logging.root)
