"""A UNet's weights under deltas in ComfyUI, as a file for each case.

    python -m benchmarks.hosts_.in_comfyui BASE_FOLDER UNET_NAME DTYPE CASES_AS_JSON RESULT_FILE
"""

import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from benchmarks.apply_.run import load, loader_node, take_out_of_file
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare


def weights(base: Path, unet: str, dtype: str, cases: dict[str, list]) -> dict:
    """Case → the file that was written; and the host's version. cases: case → names of deltas with their strengths"""
    host = InProcessHost(prepare(), base)
    import comfyui_version

    model, = host.execute("UNETLoader", unet_name=unet, weight_dtype="default").outputs
    take_out_of_file(model, getattr(torch, dtype))
    files = {}
    for case, deltas in cases.items():
        patched = model
        for name, strength in deltas:
            patched = loader_node(host, "delta", patched, f"{name}.safetensors", strength)
        load(patched)
        files[case] = str(base / f"comfyui-{dtype}-{len(files)}.safetensors")
        found = {name: weight.detach().clone() for name, weight in patched.model.named_parameters()}
        safetensors.torch.save_file(found, files[case])
    return {"files": files, "version": comfyui_version.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    base, unet, dtype, cases, result = sys.argv[1:]
    answer = weights(Path(base), unet, dtype, json.loads(cases))
    Path(result).write_text(json.dumps(answer), encoding="utf-8")
