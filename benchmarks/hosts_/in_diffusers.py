"""A UNet's weights under a delta in diffusers, as a file for each strength, by the names that the delta has.

    python -m benchmarks.hosts_.in_diffusers FOLDER UNET_FILE DELTA_FILE DTYPE STRENGTH… RESULT_FILE
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


def weights(folder: Path, unet_file: Path, delta: Path, dtype: str, strengths: list[str]) -> dict:
    """Strength → the file that was written; and the library's version."""
    stored = safetensors.torch.load_file(unet_file)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**LAYOUT)
    parts = diffusers_parts({name: tuple(weight.shape) for name, weight in unet.state_dict().items()}, whole=True)
    own = {name: dense_to_diffusers(stored[part.name], part) for name, part in parts.items()}
    unet.load_state_dict(own, assign=True)
    unet.to(getattr(torch, dtype))
    files = {}
    for strength in strengths:
        handle = load_delta(unet, delta, float(strength))
        files[strength] = str(folder / f"diffusers-{dtype}-{strength}.safetensors")
        found = {PREFIX + part.name: dense_to_comfy(unet.get_parameter(name).detach(), part).clone()
                 for name, part in parts.items()}  # fmt: skip
        safetensors.torch.save_file(found, files[strength])
        handle.remove()
    return {"files": files, "version": diffusers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    folder, unet, delta, dtype, *strengths, result = sys.argv[1:]
    answer = weights(Path(folder), Path(unet), Path(delta), dtype, strengths)
    Path(result).write_text(json.dumps(answer), encoding="utf-8")
