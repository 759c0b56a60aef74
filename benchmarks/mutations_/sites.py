"""Which mistakes are tried: drawn by a seed, the same number in every package, and all kinds of mistakes alike."""

import random
from pathlib import Path
from typing import NamedTuple

from .operators import Mutation, mutations

PACKAGES = ("backward", "training", "delta", "models", "merging", "conversion", "selection")
# Tests cannot see inside it: its kernels run where Triton is.
LEFT_OUT = {"triton_gradient.py"}


class Mutant(NamedTuple):
    """file: path in the repository; original, mutated: the lines that differ, without indentation"""

    package: str
    file: str
    mutation: Mutation
    original: str
    mutated: str


def drawn(root: Path, package: str, count: int, seed: int) -> list[Mutant]:
    """`count` mutants of a package of sara_core, fewer if it has fewer; the same ones for the same seed and code."""
    choose, by_operator = random.Random(f"{package} {seed}"), {}
    for mutant in all_mutants(root, package):
        by_operator.setdefault(mutant.mutation.operator, []).append(mutant)
    for mutants in by_operator.values():
        choose.shuffle(mutants)
    result = []
    while len(result) < count and any(by_operator.values()):
        result += [mutants.pop() for mutants in by_operator.values() if mutants]
    return sorted(result[:count], key=lambda mutant: (mutant.file, mutant.mutation.begin))


def all_mutants(root: Path, package: str) -> list[Mutant]:
    """Every mutant of a package of sara_core, file by file."""
    return [
        Mutant(package, path.relative_to(root).as_posix(), mutation, *_lines(source, mutation))
        for path in sorted((root / "sara_core" / package).rglob("*.py"))
        if path.name not in LEFT_OUT
        for source in [path.read_bytes()]
        for mutation in mutations(source)
    ]


def _lines(source: bytes, mutation: Mutation) -> tuple[str, str]:
    """The lines that a mutation touches, before and after."""
    begin = source.rfind(b"\n", 0, mutation.begin) + 1
    end = source.find(b"\n", mutation.end)
    end = len(source) if end < 0 else end
    mutated = source[begin:mutation.begin] + mutation.replacement + source[mutation.end:end]
    return _flat(source[begin:end]), _flat(mutated)


def _flat(text: bytes) -> str:
    return " ".join(text.decode().split())
