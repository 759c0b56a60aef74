"""Which package of sara_core may import which: a layer knows only those above it, and nothing goes round in circles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "sara_core"

EVERYWHERE = {"errors", "wording", "foreign_text", "numbers"}
_TOOLS = {"tensors", "names", "files"}
_DELTA = _TOOLS | {"delta"}
_MODELS = _DELTA | {"models"}
_TRAINING = _DELTA | {"backward", "selection"}
LAYERS = {
    "foreign_text": set(),
    "errors": {"foreign_text", "wording"},
    "wording": {"foreign_text"},
    "numbers": {"errors"},
    "tensors": EVERYWHERE,
    "names": EVERYWHERE,
    "files": EVERYWHERE,
    "data": EVERYWHERE | {"files"},
    "delta": EVERYWHERE | _TOOLS,
    "models": EVERYWHERE | _DELTA,
    "backward": EVERYWHERE | _DELTA,
    "extraction": EVERYWHERE | _MODELS,
    "merging": EVERYWHERE | _DELTA,
    "charts": EVERYWHERE | _MODELS | {"merging"},
    "conversion": EVERYWHERE | _MODELS | {"extraction"},
    "selection": EVERYWHERE | _DELTA | {"backward"},
    "memory": EVERYWHERE | {"backward"},
    "training": EVERYWHERE | _TRAINING | {"data", "memory"},
    "report": EVERYWHERE | _DELTA,
    "diffusers_bridge": EVERYWHERE | _MODELS,
    "pipelines": EVERYWHERE | _TRAINING | {"training", "data", "memory", "diffusers_bridge"},
}
FACES = {"commands", "__main__", ""}  # may import everything; nothing imports them but each other


def modules(folder):
    """Dotted name below `folder` → file; a package is its __init__."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, path, known):
    """Names of the modules in `known` that the module imports, wherever in it."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if full in known else ".".join(base)


MODULES = modules(LIBRARY)


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_imports_only_those_above_it(name):
    layer = name.split(".")[0]
    allowed = LAYERS.keys() if layer in FACES else LAYERS[layer] | {layer}
    for imported in imports(name, MODULES[name], MODULES):
        assert imported.split(".")[0] in allowed | (FACES if layer in FACES else set()), f"imports {imported}"


def test_no_layer_is_above_itself():
    TopologicalSorter(LAYERS).prepare()


def test_no_files_import_each_other_in_a_circle():
    graph = {name: set(imports(name, path, MODULES)) - {name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_a_forbidden_import_would_be_seen(tmp_path):
    """The rule itself: what it reads out of a file."""
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "atomic.py"
    path.write_text("def f():\n    from ..delta import SparseDelta\n    from . import container\n", encoding="utf-8")
    known = {"files.atomic", "files.container", "delta"}
    assert set(imports("files.atomic", path, known)) == {"delta", "files.container"}
