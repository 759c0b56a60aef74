#!/bin/sh
# diffusers 0.42.1, peft 0.21.2: a SHiRA adapter is added and saved by a diffusers model, and cannot be loaded by it.
#
# Expected: add_adapter() takes any PEFT config and save_lora_adapter() writes the file, with the SHiRA config in its
# header, so load_lora_adapter() of the same model gives the adapter back, or one of the three refuses.
# Instead: the first two work for SHiRA without a warning, and the third fails: it takes whatever is not LoKr for LoRA
# and makes a LoraConfig out of SHiRA's settings (TypeError). The file is whole: PEFT itself can inject and load it.
# Why it matters: one learns it after the training run. (LoRA's round trip is exact, in the same three calls.)
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
"$dir/venv/bin/python" -W ignore - <<'END'
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, ShiraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open

INPUTS = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), 5, torch.ones(2, 3, 16))


def tiny_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )


def load_by_diffusers(unet, file):
    unet.load_lora_adapter(file.parent, prefix=None, weight_name=file.name)


def load_by_peft(unet, file):
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
        state_dict = {name: opened.get_tensor(name) for name in opened.keys()}
    inject_adapter_in_model(ShiraConfig(**config), unet, "default")
    set_peft_model_state_dict(unet, state_dict, "default")


@torch.no_grad()
def round_trip(config, load):
    """What a fresh model says when it loads what another saved, or whether both give the same."""
    unet, again = tiny_unet(), tiny_unet()
    before = unet(*INPUTS).sample
    unet.add_adapter(config)
    trained = unet(*INPUTS).sample
    assert not torch.allclose(trained, before, atol=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        unet.save_lora_adapter(folder)
        try:
            load(again, Path(folder, "pytorch_lora_weights.safetensors"))
        except TypeError as error:
            return f"TypeError: {error}"
    return "the same" if torch.allclose(again(*INPUTS).sample, trained, atol=1e-6) else "another"


lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
shira = ShiraConfig(r=2, target_modules=["to_q", "to_v"], init_weights=False)
seen = [round_trip(lora, load_by_diffusers), round_trip(shira, load_by_diffusers), round_trip(shira, load_by_peft)]
print(f"torch {version('torch')}, diffusers {version('diffusers')}, peft {version('peft')}: after saving and loading")
print("LoRA by diffusers: {}\nSHiRA by diffusers: {}\nSHiRA by peft: {}".format(*seen))
as_stated = seen == ["the same", "TypeError: `LoraConfig` class could not be instantiated.", "the same"]
sys.exit(0 if as_stated else "This is no longer so.")
END
