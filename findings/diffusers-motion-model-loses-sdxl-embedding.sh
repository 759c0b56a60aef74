#!/bin/sh
# diffusers 0.42.1: of an SDXL UNet that becomes a motion model, the embedding of sizes and pooled text is left behind.
#
# Expected: UNetMotionModel.from_unet2d(unet, adapter), which AnimateDiffSDXLPipeline calls with the UNet it is given, has
# all of the UNet's weights; with a motion module that adds nothing, each frame is what the UNet gives.
# Instead: add_embedding, which brings the pooled prompt and the sizes in, keeps the random weights that it was made
# with. No word of it; a model without such an embedding (SD1.5) is converted exactly. Two conversions of one UNet, and
# so two starts of a program with the same seed of the pictures, are two models.
# Why it matters: a motion module trained on such a model has learnt to live with one random embedding and meets
# another everywhere else; and a delta or LoRA that trains add_embedding is lost on the way into the pipeline.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
ADDED = {"text_embeds": torch.ones(1, 16), "time_ids": torch.full((1, 6), 512.0)}
BLOCKS = {"block_out_channels": (32, 64)}


def unet(**options):
    """A tiny UNet with SDXL's added conditions, or without."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, cross_attention_dim=16, attention_head_dim=8, norm_num_groups=16, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **BLOCKS, **options,
    ).eval()


def converted(pictures):
    """The UNet as a motion model, with a motion module that adds nothing."""
    adapter = MotionAdapter(motion_num_attention_heads=4, motion_norm_num_groups=16, motion_layers_per_block=1, **BLOCKS)
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return UNetMotionModel.from_unet2d(pictures, adapter).eval()


@torch.no_grad()
def apart(pictures):
    """Largest difference of one frame, beside the largest value, and of the frame after two conversions."""
    noise, text = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.ones(1, 3, 16)
    frame = pictures(noise, 5, text, added_cond_kwargs=ADDED).sample
    first, second = (
        converted(pictures)(noise[:, :, None], 5, text, added_cond_kwargs=ADDED).sample[:, :, 0] for _ in range(2)
    )
    return [(one.abs().max() / frame.abs().max()).item() for one in (first - frame, first - second)]


print(f"torch {version('torch')}, diffusers {version('diffusers')}: difference, of the largest value")
plain, sdxl = apart(unet()), apart(unet(**SDXL))
for name, (to_unet, to_each_other) in (("without added conditions", plain), ("with SDXL's", sdxl)):
    print(f"{name}: to the UNet {to_unet:.4f}, of two conversions {to_each_other:.4f}")
as_stated = max(plain) < 1e-5 and min(sdxl) > 0.01
sys.exit(0 if as_stated else "This is no longer so.")
END
