"""A UNet's weights under a delta in ComfyUI, as a file for each strength.

    python -m benchmarks.hosts_.in_comfyui BASE_FOLDER UNET_NAME DELTA_NAME DTYPE STRENGTH… RESULT_FILE
"""

import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from benchmarks.apply_.run import load, loader_node, take_out_of_file
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare


def weights(base: Path, unet: str, delta: str, dtype: str, strengths: list[str]) -> dict:
    """Strength → the file that was written; and the host's version."""
    host = InProcessHost(prepare(), base)
    import comfyui_version

    model, = host.execute("UNETLoader", unet_name=unet, weight_dtype="default").outputs
    take_out_of_file(model, getattr(torch, dtype))
    files = {}
    for strength in strengths:
        patched = loader_node(host, "delta", model, delta, float(strength))
        load(patched)
        files[strength] = str(base / f"comfyui-{dtype}-{strength}.safetensors")
        found = {name: weight.detach().clone() for name, weight in patched.model.named_parameters()}
        safetensors.torch.save_file(found, files[strength])
    return {"files": files, "version": comfyui_version.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    base, unet, delta, dtype, *strengths, result = sys.argv[1:]
    answer = weights(Path(base), unet, delta, dtype, strengths)
    Path(result).write_text(json.dumps(answer), encoding="utf-8")
