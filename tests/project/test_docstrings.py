"""Whoever looks a public definition of sara_core up finds what it is in its docstring, and the type of all it takes and
gives. What implements a protocol or a base class of the package may leave the words to that."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "sara_core"
MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
           for path in sorted(LIBRARY.rglob("*.py"))}  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Class(NamedTuple):
    """What a class has and where it has it from. methods: name → names of its parameters"""

    bases: set[str]
    methods: dict[str, tuple[str, ...]]
    documented: set[str]


def is_public(node: ast.AST) -> bool:
    return isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")


def methods(node: ast.ClassDef) -> Iterator[Function]:
    return (method for method in node.body if isinstance(method, Function))


def read_class(node: ast.ClassDef) -> Class:
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    own = {method.name: tuple(a.arg for a in method.args.args) for method in methods(node) if is_public(method)}
    return Class(bases, own, {method.name for method in methods(node) if ast.get_docstring(method)})


def classes_of(trees: Iterable[ast.Module]) -> dict[str, Class]:
    return {node.name: read_class(node) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def inherited(own: Class, classes: dict[str, Class]) -> set[str]:
    """Methods that are documented where the class has them from: its bases, and the protocols all of whose methods it
    has."""
    protocols = [it for it in classes.values() if "Protocol" in it.bases and it.methods.items() <= own.methods.items()]
    found = set().union(*(it.documented for it in protocols))
    for base in own.bases & classes.keys():
        found |= classes[base].documented | inherited(classes[base], classes)
    return found


def without_type(function: Function, is_method: bool) -> Iterator[str]:
    """The parameters that have no annotation, and the result."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    if is_method and "staticmethod" not in map(ast.unparse, function.decorator_list):
        named = named[1:]  # self or cls
    for argument in (*named, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg):
        if argument is not None and argument.annotation is None:
            yield argument.arg
    if function.returns is None and function.name != "__init__":
        yield "the result"


def faults(tree: ast.Module, classes: dict[str, Class]) -> Iterator[str]:
    classes = classes | classes_of([tree])  # of two of the same name, that of the module itself
    if tree.body and not ast.get_docstring(tree):
        yield "the module has no docstring"
    for node in filter(is_public, tree.body):
        if not ast.get_docstring(node):
            yield f"{node.name} has no docstring"
        functions = [(node.name, node)]
        if isinstance(node, ast.ClassDef):
            own = [method for method in methods(node) if is_public(method) or method.name == "__init__"]
            functions = [(f"{node.name}.{method.name}", method) for method in own]
            known = inherited(read_class(node), classes) | {"__init__"}  # of which the class tells
            for name, method in functions:
                if not ast.get_docstring(method) and method.name not in known:
                    yield f"{name} has no docstring"
        for name, function in functions:
            for what in without_type(function, isinstance(node, ast.ClassDef)):
                yield f"{name}: {what} has no type"


CLASSES = classes_of(MODULES.values())


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_explained_and_typed(name):
    found = list(faults(MODULES[name], CLASSES))
    assert not found, "\n".join(found)


RULE = '''
"""A module."""

class Shape(Protocol):
    """A shape."""
    def area(self, unit: str) -> float:
        """In square units."""

class Square:
    """Implements Shape, whose words hold."""
    def __init__(self, side): ...
    def area(self, unit) -> float: ...

class Cube(Square):
    """Has a method that nobody explains."""
    def volume(self) -> float: ...
    def _hidden(self, x): ...

def measured(x, *more: int, **options):
    """Explained, not typed."""

def bare() -> None: ...

class Nameless: ...
'''


def test_what_is_missing_would_be_seen():
    """The rule itself: what it reads out of a file."""
    tree = ast.parse(RULE)
    assert list(faults(tree, classes_of([tree]))) == [
        "Square.__init__: side has no type", "Square.area: unit has no type", "Cube.volume has no docstring",
        "measured: x has no type", "measured: options has no type", "measured: the result has no type",
        "bare has no docstring", "Nameless has no docstring",
    ]  # fmt: skip
    assert list(faults(ast.parse("x = 1"), {})) == ["the module has no docstring"]
