"""The examples in docstrings of sara_core say what happens."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a newcomer meets first.
SHOWN = {"SaRA", "SparseDelta", "extract", "load_delta", "merge", "select"}


def _shown(path: Path) -> list[str]:
    """Names of what has an example in a file; read, not imported: not every module can be where no GPU is."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    documented = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module))
    return [getattr(node, "name", "") for node in documented if ">>>" in (ast.get_docstring(node) or "")]


# Module → names
EXAMPLES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): _shown(path)
    for path in sorted((ROOT / "sara_core").rglob("*.py"))
}


def _run(example: doctest.DocTest) -> str:
    """What went otherwise than it says."""
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("module", [module for module, names in EXAMPLES.items() if names])
def test_examples_give_what_they_show(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    for example in filter(lambda it: it.examples, examples):
        example.globs = {}  # as for a reader, who has imported nothing yet
        assert not (told := _run(example)), told


def test_what_a_newcomer_meets_first_has_an_example():
    assert SHOWN <= {name for names in EXAMPLES.values() for name in names}


def test_a_wrong_example_would_be_seen():
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Got:\n    2" in _run(example)
