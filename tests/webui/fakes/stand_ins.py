"""Modules that are importable for a while, and gone afterwards together with all that has imported them."""

import importlib.machinery
import importlib.util
import sys
from contextlib import contextmanager


def module(name, **contents):
    """A module with this content, which importlib finds once it is in sys.modules."""
    made = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, None, is_package=True))
    for key, value in contents.items():
        setattr(made, key, value)
    return made


@contextmanager
def importable(modules, forgotten):
    """modules: to be found by name; forgotten: top names of which everything is imported anew, within and afterwards"""
    before = dict(sys.modules)

    def forget():
        for name in list(sys.modules):
            if name.partition(".")[0] in forgotten:
                del sys.modules[name]

    forget()
    for made in modules:
        sys.modules[made.__name__] = made
        parent, _, last = made.__name__.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, made)
    try:
        yield
    finally:
        forget()
        sys.modules.update({name: known for name, known in before.items() if name.partition(".")[0] in forgotten})
