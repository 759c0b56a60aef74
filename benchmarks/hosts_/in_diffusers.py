"""A UNet's weights under deltas in diffusers, as a file for each case, by the names that the deltas have.

    python -m benchmarks.hosts_.in_diffusers FOLDER UNET_FILE DTYPE CASES_AS_JSON RESULT_FILE
"""

import json
import sys
from pathlib import Path

import diffusers
import safetensors.torch
import torch

from sara_core.delta.translate import dense_to_comfy, dense_to_diffusers
from sara_core.diffusers_bridge import load_delta
from sara_core.names.diffusers import diffusers_parts

PREFIX = "diffusion_model."
# As benchmarks.lib.random_unet has it in "one level".
LAYOUT = {
    "block_out_channels": (320,), "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",), "layers_per_block": 1, "cross_attention_dim": 768,
    "attention_head_dim": 8,
}  # fmt: skip


def weights(folder: Path, unet_file: Path, dtype: str, cases: dict[str, list]) -> dict:
    """Case → the file that was written; and the library's version. cases: case → names of deltas with their strengths,
    in models/sara of the folder"""
    stored = safetensors.torch.load_file(unet_file)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**LAYOUT)
    parts = diffusers_parts({name: tuple(weight.shape) for name, weight in unet.state_dict().items()}, whole=True)
    own = {name: dense_to_diffusers(stored[part.name], part) for name, part in parts.items()}
    unet.load_state_dict(own, assign=True)
    unet.to(getattr(torch, dtype))
    files = {}
    for case, deltas in cases.items():
        handles = [load_delta(unet, folder / "models" / "sara" / f"{name}.safetensors", strength)
                   for name, strength in deltas]  # fmt: skip
        files[case] = str(folder / f"diffusers-{dtype}-{len(files)}.safetensors")
        found = {PREFIX + part.name: dense_to_comfy(unet.get_parameter(name).detach(), part).clone()
                 for name, part in parts.items()}  # fmt: skip
        safetensors.torch.save_file(found, files[case])
        for handle in reversed(handles):
            handle.remove()
    return {"files": files, "version": diffusers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    folder, unet, dtype, cases, result = sys.argv[1:]
    answer = weights(Path(folder), Path(unet), dtype, json.loads(cases))
    Path(result).write_text(json.dumps(answer), encoding="utf-8")
