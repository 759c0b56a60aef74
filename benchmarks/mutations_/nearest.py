"""Which tests to ask about a mistake, and in which order: from the nearest outwards."""

from pathlib import PurePosixPath

from .executed import Executed, Watched
from .sites import Mutant

# Of the tests that are asked about one mistake, in seconds of the processor that they took when they were watched.
LIMIT_SECONDS = 120.0


def nearest(mutant: Mutant, found: Executed) -> list[list[Watched]]:
    """The tests that execute the mistake's statement, in groups: its module's own, its package's, the library's, the
    nodes'. In each group the tests that execute the fewest lines of the library come first.

    A statement that runs when the module is imported is executed by whoever executes anything of that module; if nobody
    does, as with one that holds constants only, by every test.
    """
    statement = set(range(mutant.mutation.first, mutant.mutation.last + 1))
    asked = [test for test in found.tests if statement & test.lines.get(mutant.file, set())]
    if statement & found.imported.get(mutant.file, set()):
        asked = [test for test in found.tests if mutant.file in test.lines] or found.tests
    groups: dict[int, list[Watched]] = {}
    for test in sorted(asked, key=lambda test: (_distance(mutant.file, test.id), _size(test))):
        groups.setdefault(_distance(mutant.file, test.id), []).append(test)
    return _limited(list(groups.values()))


def _limited(groups: list[list[Watched]]) -> list[list[Watched]]:
    seconds, result = 0.0, []
    for group in groups:
        result.append([])
        for test in group:
            seconds += test.seconds
            if seconds <= LIMIT_SECONDS or not result[0]:
                result[-1].append(test)
    return [group for group in result if group]


def _distance(file: str, test: str) -> int:
    module, tests = PurePosixPath(file), PurePosixPath(test.split("::")[0])
    folder = PurePosixPath("tests", "core", *module.parent.parts[1:])
    if tests.parent == folder:
        return 0 if tests.stem.startswith(f"test_{module.stem}") else 1
    return 2 if tests.parts[1] == "core" else 3


def _size(test: Watched) -> int:
    return sum(map(len, test.lines.values()))
