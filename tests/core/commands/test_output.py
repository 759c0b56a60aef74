"""What the command line says reaches every console."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from sara_core import SparseDelta
from sara_core.delta import SparseEntry

ROOT = Path(__file__).resolve().parents[3]


def test_a_title_that_the_console_cannot_write_does_not_end_the_command(tmp_path):
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (4,))
    SparseDelta({"diffusion_model.a.weight": entry}, {"modelspec.title": "墨 ink"}).save(tmp_path / "x.safetensors")
    result = subprocess.run(
        [sys.executable, "-m", "sara_core", "inspect", str(tmp_path / "x.safetensors")], cwd=ROOT,
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    assert b"? ink" in result.stdout
