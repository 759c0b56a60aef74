"""A UNet of SDXL's architecture with random weights in fp8, as a file that the host's loader takes for the real thing.

    python -m benchmarks.precision_.sdxl_file FILE
"""

import sys
from pathlib import Path

from benchmarks.lib.random_unet import SEED, STANDARD_DEVIATION
from devtools.comfyui.install import prepare

LAYOUT = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "context_dim": 2048,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}


def write(path: Path) -> None:
    """Every tensor in fp8 e4m3, as people have it; needs comfy on the path."""
    import safetensors.torch
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in UNetModel(**LAYOUT).state_dict().items()}
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            weight = torch.randn(shape, generator=generator).mul_(STANDARD_DEVIATION)
        else:  # norms: the identity; biases: none
            weight = torch.full(shape, float(name.endswith("weight")))
        weights[name] = weight.to(torch.float8_e4m3fn)
    safetensors.torch.save_file(weights, path)


if __name__ == "__main__":
    sys.path.insert(0, str(prepare().folder))
    from comfy.cli_args import args

    args.cpu = True
    write(Path(sys.argv[1]))
