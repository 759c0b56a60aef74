"""Functions of a host put into others, and given back."""

import functools
from collections.abc import Callable
from typing import Any


class Replaced:
    """A function of a module or class, called through `around(original, *arguments)` until `undo`.

    Whoever has replaced it after us keeps calling ours, which then only passes on.
    """

    def __init__(self, owner: Any, name: str, around: Callable):
        self._owner, self._name, self._around = owner, name, around
        self._original = getattr(owner, name)

        @functools.wraps(self._original)
        def own(*args, **kwargs):
            return (self._around or _passed_on)(self._original, *args, **kwargs)

        self._own = own
        setattr(owner, name, own)

    def is_in_place(self) -> bool:
        """Whether the host calls ours first."""
        return getattr(self._owner, self._name) is self._own

    def undo(self) -> None:
        """Give the host its own back."""
        self._around = None
        if self.is_in_place():
            setattr(self._owner, self._name, self._original)


def _passed_on(original, *args, **kwargs):
    return original(*args, **kwargs)
