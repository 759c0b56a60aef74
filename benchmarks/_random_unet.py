"""A UNet of SD1.5's architecture with random weights, as a file that the host's loader takes for the real thing.

    python -m benchmarks._random_unet LAYOUT FILE
"""

import sys
from pathlib import Path

from devtools.host import prepare

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
}
# Normal weights of this width have the densities that the SaRA paper reports for SD1.5: 0.58 % below 2e-4, 5.8 % below
# 2e-3. Every Linear and convolution but the last follows a norm, so that activations stay in range.
STANDARD_DEVIATION = 0.0275
SEED = 0


def write(layout: str, path: Path) -> None:
    """Write the fp32 weights of ``LAYOUTS[layout]`` under the UNet's own names; needs comfy on the path."""
    import safetensors.torch
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
    safetensors.torch.save_file(weights, path)


if __name__ == "__main__":
    layout, path = sys.argv[1:]
    sys.path.insert(0, str(prepare().folder))
    from comfy.cli_args import args

    args.cpu = True
    write(layout, Path(path))
