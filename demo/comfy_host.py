"""Makes ComfyUI's own modules importable in this process, on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def prepare(root: str | Path | None = None) -> Path:
    """Put ComfyUI on `sys.path` and force the CPU; call it before importing anything from `comfy`.

    root: ComfyUI's folder; by default the environment variable COMFYUI_PATH. Returns it.
    Raises FileNotFoundError when that is no ComfyUI.
    """
    named = root or os.environ.get("COMFYUI_PATH", "")
    chosen = Path(named).resolve()
    if not (chosen / "comfy" / "sd.py").is_file():
        raise FileNotFoundError(
            f"No ComfyUI in {str(named)!r}. Set COMFYUI_PATH to ComfyUI's folder "
            "(`python dev.py host --path` prints one) and run with its Python (`python dev.py host --python`)."
        )
    # First place, so that ComfyUI's `nodes` module is found before any other of that name.
    if str(chosen) not in sys.path:
        sys.path.insert(0, str(chosen))
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True
    return chosen
