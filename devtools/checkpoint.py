"""The demo's checkpoint, put together once in the cache from the weights and scripts in ``demo``."""

import hashlib
import subprocess
from pathlib import Path

from .comfyui.install import ROOT, prepare
from .locking import locked
from .prepared import HostError, cache_root
from .progress import Progress

NAME = "sara-demo-digits.safetensors"
DEMO = ROOT / "demo"


def demo_checkpoint(progress: Progress | None = None) -> Path:
    """Return the checkpoint's path; the folder that holds it holds nothing else.

    Raises HostError when it cannot be made; the message ends with the script's own.
    """
    progress = progress or Progress()
    folder = cache_root() / "demo" / _digest()
    path = folder / NAME
    with locked(cache_root() / "demo.lock", lambda: progress.update("waiting for another process")):
        if not path.exists():
            progress.say("putting the demo's checkpoint together")
            command = [str(prepare(progress=progress).python), "-m", "demo.checkpoint", str(path)]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if result.returncode:
                raise HostError(f"The demo's checkpoint could not be made:\n{result.stderr.strip()}")
    return path


def _digest() -> str:
    """Changes whenever anything changes that the checkpoint is made of."""
    sources = [DEMO / name for name in ("checkpoint.py", "text_encoder.py", "unet.safetensors", "taesd.safetensors")]
    digest = hashlib.sha256()
    for source in sources:
        if not source.is_file():
            raise HostError(f"{source} is missing: the demo's checkpoint is made from it.")
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
