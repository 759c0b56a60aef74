"""A UNet of SD1.5's architecture with random weights, as a file that the host's loader takes for the real thing.

    python -m benchmarks.lib.random_unet LAYOUT FILE
"""

import hashlib
import inspect
import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.lib.process import run_module
from devtools.comfyui.install import prepare
from devtools.locking import locked
from devtools.prepared import HostError, cache_root
from devtools.progress import Progress

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
}
LAYOUTS = {
    "sd15": {
        **COMMON,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
    },
    "small": {
        **COMMON,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [0, 0],
        "transformer_depth_middle": -1,
    },
    # As small as one is that ComfyUI, diffusers and the WebUIs can all build: with attention everywhere.
    "one level": {
        **COMMON,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [1, 1],
        "transformer_depth_middle": 1,
    },
}
# Normal weights of this width have the densities that the SaRA paper reports for SD1.5: 0.58 % below 2e-4, 5.8 % below
# 2e-3. Every Linear and convolution but the last follows a norm, so that activations stay in range.
STANDARD_DEVIATION = 0.0275
SEED = 0
FILE_BYTES = {"sd15": 3_500_000_000, "small": 70_000_000, "one level": 120_000_000}


def write(layout: str, path: Path) -> None:
    """Write the fp32 weights of ``LAYOUTS[layout]`` under the UNet's own names; needs comfy on the path."""
    import safetensors.torch

    safetensors.torch.save_file(random_weights(layout), path)


def random_weights(layout: str) -> dict:
    """The weights that `write` writes."""
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in UNetModel(**LAYOUTS[layout]).state_dict().items()}
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            weights[name] = torch.randn(shape, generator=generator).mul_(STANDARD_DEVIATION)
        else:  # norms: the identity; biases: none
            weights[name] = torch.full(shape, float(name.endswith("weight")))
    return weights


def unet_file(layout: str, progress: Progress) -> Path:
    """The UNet's file, written by the first run of this benchmark."""
    # With the code that writes it: the file is shared with checkouts whose code may be another.
    recipe = json.dumps([LAYOUTS[layout], SEED, STANDARD_DEVIATION, inspect.getsource(random_weights)])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    path = cache_root() / "bench" / f"random-{layout.replace(' ', '-')}-{digest}.safetensors"
    with locked(cache_root() / "bench.lock", lambda: progress.update("waiting for another process")):
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < FILE_BYTES[layout]:
            raise HostError(
                f"{path.parent} needs {FILE_BYTES[layout] / 1e9:.1f} GB for a random UNet, and its disk has "
                f"{free / 1e9:.1f} GB free. Free some space, or set SARA_CACHE to a folder on a larger disk."
            )
        progress.say(f"writing a random UNet to {path} (kept for the next time)")
        unfinished = path.with_suffix(".unfinished")
        run_module("benchmarks.lib.random_unet", [layout, str(unfinished)])
        os.replace(unfinished, path)
    return path


if __name__ == "__main__":
    layout, path = sys.argv[1:]
    sys.path.insert(0, str(prepare().folder))
    from comfy.cli_args import args

    args.cpu = True
    write(layout, Path(path))
