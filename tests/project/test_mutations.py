"""`python dev.py bench mutations`: its mistakes are what they are called, and tests are heard that notice them."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mutations as mutations_bench
from benchmarks.mutations_ import equivalent
from benchmarks.mutations_.executed import Executed, Watched
from benchmarks.mutations_.nearest import nearest
from benchmarks.mutations_.operators import Mutation, mutations
from benchmarks.mutations_.runner import Outcome, copied
from benchmarks.mutations_.sites import PACKAGES, Mutant, all_mutants, drawn

ROOT = Path(__file__).resolve().parents[2]

MISTAKES = {
    "x = a < b": ["x = a <= b"],
    "x = a <= (b) == c": ["x = a < (b) == c", "x = a <= (b) != c"],
    "x = Δ is not None": ["x = Δ is None"],
    "x = a not in b": ["x = a in b"],
    "x = (a) and b or c": ["x = (a) or b or c", "x = (a) and b and c"],
    "x = not a": ["x = a"],
    "x = 0": ["x = 1"],
    "x = 1": ["x = 0"],
    "x = 7": ["x = 8"],
    "x = 0.5": ["x = 1.0"],
    "x = 0.0": ["x = 1.0"],
    "x = True": ["x = False"],
    "x = -a": ["x = a"],
    "x = (a - b) * c": ["x = (a + b) * c", "x = (a - b) / c"],
    "x += a": ["x -= a"],
    "x = θ / a": ["x = θ * a"],
    "f(a)": ["pass"],
    "x = f(a, b, k=c)": ["x = f(b, a, k=c)"],
    "x = f(a, g(b), *c)": ["x = f(g(b), a, *c)"],
    "x = a.clone()": ["x = a"],
    "x = (a).detach()": ["x = (a)"],
    "x = a.to(c, torch.float32)": ["x = a", "x = a.to(torch.float32, c)"],
    "def f(a: Literal[1] = 2) -> Literal[3]: pass": ["def f(a: Literal[1] = 3) -> Literal[3]: pass"],
    "a: Literal[1] = 2": ["a: Literal[1] = 3"],
}
LEFT_ALONE = [
    '"""A text of 3 lines."""', "def f():\n    'a < b'", "raise ValueError(f(a, 1))", "error = DeltaError(1)",
    "logging.info('%s', 1)", "x = f'{a + 1}'", "x = 'a' + b", "@dataclass(frozen=True)\nclass A: pass",
    "if TYPE_CHECKING:\n    x = 1", "x = isinstance(a, b)", "x = max(a, b)", "x = f(a, a)", "x = a.float(b)",
    "x = a.to(b)", "x: int",
]  # fmt: skip


@pytest.mark.parametrize("source", MISTAKES)
def test_a_mistake_is_what_it_is_called(source):
    found = [mutation.applied(source.encode()).decode() for mutation in mutations(source.encode())]
    assert sorted(found) == sorted(MISTAKES[source])


@pytest.mark.parametrize("source", LEFT_ALONE)
def test_what_no_test_of_behaviour_could_notice_is_left_alone(source):
    assert mutations(source.encode()) == []


def test_a_mistake_knows_its_function_and_the_lines_of_its_statement():
    source = b"class A:\n  def f(self):\n    if (a <\n        b):\n      return g(\n        3)\n"
    comparison, constant = mutations(source)
    assert (comparison.function, comparison.line, comparison.first, comparison.last) == ("A.f", 3, 3, 4)
    assert (constant.function, constant.line, constant.first, constant.last) == ("A.f", 6, 5, 6)


def test_every_mistake_in_the_library_is_python_and_another_program():
    mutants = [mutant for package in PACKAGES for mutant in all_mutants(ROOT, package)]
    assert len(mutants) > 3000
    for mutant in mutants[::80]:
        source = (ROOT / mutant.file).read_bytes()
        mistaken = mutant.mutation.applied(source)
        assert ast.dump(ast.parse(mistaken)) != ast.dump(ast.parse(source)), mutant


def test_a_draw_is_repeatable_and_takes_every_kind_of_mistake():
    first, again, other = (drawn(ROOT, "backward", 20, seed) for seed in (0, 0, 1))
    assert first == again and len({*first, *other}) > 30
    assert len(first) == 20 and len({mutant.mutation.operator for mutant in first}) == 7


def test_only_what_was_not_noticed_is_made_again():
    first, second, third = drawn(ROOT, "delta", 3, 0)
    results = [
        mutations_bench.record(mutant, Outcome(kind, "", 0, 0.0))
        for mutant, kind in ((first, "survived"), (second, "killed"), (third, "survived"))
    ]
    results[2]["original"] = "a line that is no longer there"
    assert mutations_bench.unnoticed(ROOT, results) == [first]


def test_everything_said_to_be_no_mistake_is_still_in_the_library():
    known = {
        (mutant.file, mutant.mutation.function, mutant.original, mutant.mutated)
        for package in PACKAGES for mutant in all_mutants(ROOT, package)
    }  # fmt: skip
    for place, lines in equivalent.EQUIVALENT.items():
        for change in lines:
            assert (*place, *change) in known


def test_tests_are_asked_from_the_nearest_outwards():
    mutant = Mutant("backward", "sara_core/backward/attach.py", Mutation("sign", "f", 8, 7, 9, 0, 1, b""), "", "")
    lines = {mutant.file: frozenset([9])}
    others = {"sara_core/training/loop.py": frozenset([1, 2])}

    def ids(*tests, imported={}):
        return [[test.id for test in group] for group in nearest(mutant, Executed(list(tests), imported))]

    far = Watched("tests/nodes/test_train.py::a", 1, lines)
    library = Watched("tests/core/training/test_loop.py::a", 1, lines)
    own_large = Watched("tests/core/backward/test_attach.py::a", 1, {**lines, **others})
    own = Watched("tests/core/backward/test_attach.py::b", 1, lines)
    package = Watched("tests/core/backward/test_layer.py::a", 1, lines)
    elsewhere = Watched("tests/core/backward/test_attach.py::c", 1, {mutant.file: frozenset([1])})
    unrelated = Watched("tests/core/backward/test_attach.py::d", 1, others)
    every = (far, library, own_large, package, elsewhere, unrelated, own)
    assert ids(*every) == [[own.id, own_large.id], [package.id], [library.id], [far.id]]
    assert ids(*every, imported=lines)[0] == [elsewhere.id, own.id, own_large.id]  # it runs when it is imported
    assert ids(unrelated, imported=lines) == [[unrelated.id]]
    assert ids(unrelated) == []


def test_a_copy_holds_what_git_tracks_or_would(tmp_path):
    root = tmp_path / "root"
    for name, text in {"a/b.py": "x", ".gitignore": "*.pyc\n", "c.pyc": "y"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    copy = copied(root, tmp_path / "copy")
    assert sorted(path.name for path in copy.rglob("*")) == [".gitignore", "a", "b.py"]


FILES = {
    "sara_core/shapes/sides.py": "SIDES = 2\n",
    "sara_core/shapes/area.py": (
        "from .sides import SIDES\n\n"
        "def area(a, b):\n    return a * b\n\n"
        "def perimeter(a, b):\n    return SIDES * (a + b)\n\n"
        "def never(a):\n    return a < 1\n\n"
        "def countdown(a):\n    while a:\n        a -= 1\n    return a\n"
    ),
    "tests/core/shapes/test_area.py": (
        "import pytest\nfrom sara_core.shapes.area import area, perimeter, countdown\n\n"
        "@pytest.fixture(scope='module')\ndef one():\n    return area(1, 1)\n\n"
        "def test_one(one):\n    pass\n\n"
        "def test_area(one):\n    assert one == 1 and area(2, 3) == 6\n\n"
        "def test_perimeter():\n    assert perimeter(3, 1) > 0\n\n"
        "def test_countdown():\n    assert countdown(3) == 0\n\n"
        "def test_red():\n    assert area(1, 2) == 3\n"
    ),
    "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['.']\naddopts = ['--import-mode=importlib']\n",
}  # fmt: skip
ASK = """
import json, sys
from pathlib import Path
from benchmarks.mutations_ import executed, runner, sites
copy, said, outcomes = Path("{copy}"), [], {{}}
found = executed.executed(copy, ["tests/core/shapes/test_area.py"], copy.parent / "kept", said.append)
for mutant in sites.all_mutants(copy, "shapes"):
    runner.START_SECONDS = 1 if mutant.mutation.function == "countdown" else 60  # it never ends
    outcomes[mutant.original + " → " + mutant.mutated] = runner.tried(copy, mutant, found)
executed.executed(copy, ["tests/core/shapes/test_area.py"], copy.parent / "kept", said.append)
print(json.dumps([said, outcomes]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_mistakes_that_a_test_notices_are_killed_and_others_survive(tmp_path):
    copy = tmp_path / "repository"
    for name, text in FILES.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    ask = subprocess.run([sys.executable, "-c", ASK.format(copy=copy)], cwd=ROOT, capture_output=True, text=True)
    assert ask.returncode == 0, ask.stderr
    said, outcomes = json.loads(ask.stdout)
    here = "tests/core/shapes/test_area.py"
    assert len(said) == 2 and said[1].endswith(f"left out: {here}::test_red")  # it ran once
    assert {mistake: outcome[:3] for mistake, outcome in outcomes.items()} == {
        "return a * b → return a / b": ["killed", f"{here}::test_area", 2],
        "return SIDES * (a + b) → return SIDES / (a + b)": ["survived", "", 1],
        "return SIDES * (a + b) → return SIDES * (a - b)": ["survived", "", 1],
        "return a < 1 → return a <= 1": ["survived", "no test executes it", 0],
        "return a < 1 → return a < 0": ["survived", "no test executes it", 0],
        "a -= 1 → a += 1": ["timed out", "pytest did not end", 1],
        "a -= 1 → a -= 0": ["timed out", "pytest did not end", 1],
        "SIDES = 2 → SIDES = 3": ["survived", "", 4],
    }
    assert {name: (copy / name).read_text() for name in FILES} == FILES
