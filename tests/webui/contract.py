"""A WebUI's sources, read without running anything."""

import ast
from functools import cache
from pathlib import Path


@cache
def function(checkout, file, name):
    """A function, method or class of a file, found by its dotted name; None if there is none."""
    found = ast.parse(Path(checkout, file).read_text(encoding="utf-8"))
    for word in name.split("."):
        inside = [node for node in ast.walk(found) if getattr(node, "name", None) == word]
        if not inside:
            return None
        found = inside[0]
    return found


def parameter_names(found):
    """Of a function: those that may be given, `*` before those that may be given by name alone."""
    given = found.args
    names = [one.arg for one in given.posonlyargs + given.args]
    return names + (["*"] if given.kwonlyargs else []) + [one.arg for one in given.kwonlyargs]
