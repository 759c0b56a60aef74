"""The processes of one training leave together."""

import pytest
import torch

from tests.core.commands.test_train import torchrun

LATE = """
import sys
import time
from pathlib import Path

from sara_core.training.processes import joined_processes

saved = Path(sys.argv[1])
with joined_processes() as processes:
    if processes.is_first:
        time.sleep(1.5)
        saved.touch()
assert saved.exists()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_no_process_ends_before_the_first_has_saved(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    torchrun(script, tmp_path / "saved")
