"""Another revision's library, measured by this checkout's benchmarks."""

import shutil
from pathlib import Path

from benchmarks.golden_.checkouts import check_out
from devtools.comfyui.install import ROOT
from devtools.packer import as_repository

# What measures, and starts hosts: today's for both, or else they would be compared by different rulers.
TODAYS = ("benchmarks", "devtools", "tests")


def measurable(revision: str, folder: Path) -> Path:
    """A checkout of a revision in `folder`, which does not exist yet, with today's benchmarks.

    revision: a commit, as from `checkouts.full_name`
    """
    check_out(ROOT, revision, folder)
    for name in TODAYS:
        shutil.rmtree(folder / name)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return as_repository(folder)  # what is installed into a host is what git tracks
