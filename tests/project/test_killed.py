"""A training killed at any moment leaves its last complete snapshot, loadable and right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_killed_trainings():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability", "--rounds", "10"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    middle = int(re.search(r"(\d+) one from the middle", result.stdout)[1])
    assert middle >= 3, result.stdout  # otherwise the moments were none
