"""In the place of the package av, which reads and writes video: every import of it works, no use of it does."""

import importlib.machinery
import sys
import types

__version__ = "17.0.0"  # the server asks for 16 or newer


class _Absent:
    def __init__(self, *arguments, **named):
        raise RuntimeError("There is no video here: av is a stub.")


def _attribute(name):
    """A class, since others are derived from it and asked for in annotations."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (_Absent,), {})


class _Finder:
    """Finds av.anything.at.all."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("av.") else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = _attribute
        return module

    def exec_module(self, module):
        pass


__getattr__ = _attribute
sys.meta_path.append(_Finder())
