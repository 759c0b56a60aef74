#!/bin/sh
# PEFT 0.21.2 and lycoris-lora 4.1.3: a LoRA on a convolution that pads by wrapping around pads with zeros itself.
#
# Expected: an adapter of a layer computes as the layer would with the changed weights. Merging does not matter.
# Instead: of a convolution's settings both take stride and padding, and not `padding_mode`. Where the base wraps around
# ("circular"), mirrors or repeats the border, the adapter sees zeros: its part is another one in the rows and columns
# at the edge, and merged it is the right one. This holds for PEFT's LoRA, LoHa and LoKr and for LyCORIS' LoRA. BOFT,
# which computes with the changed weight, loses the wrapping of the base as well. Inside the picture all is well.
# Why it matters: for seamless textures and panoramas all convolutions are set to "circular"; an adapter loaded after
# that brings seams back, one that is trained so learns against edges that are not there once it is merged, and the
# same file gives two pictures in two programs.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 peft==0.21.2 \
    lycoris-lora==4.1.3 toml==0.10.2
"$dir/venv/bin/python" -W ignore - <<'END'
import logging
import sys
from importlib.metadata import version

import torch
from lycoris import LycorisNetwork, create_lycoris
from peft import BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

logging.disable(logging.WARNING)
LycorisNetwork.apply_preset({"enable_conv": True, "target_name": ["0"]})
picture = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
CONFIGS = {
    "PEFT's LoRA": LoraConfig(r=4, target_modules=["0"], init_lora_weights=False),
    "PEFT's LoHa": LoHaConfig(r=4, target_modules=["0"], init_weights=False),
    "PEFT's LoKr": LoKrConfig(r=4, target_modules=["0"], init_weights=False),
    "PEFT's BOFT": BOFTConfig(boft_block_size=4, target_modules=["0"], init_weights=False),
}


def base(mode):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)).requires_grad_(False)


def in_peft(kind, mode):
    model = get_peft_model(base(mode), CONFIGS[kind]).eval()
    return model(picture), model.merge_and_unload()(picture)


def in_lycoris(kind, mode):
    model = base(mode)
    network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=4, conv_dim=4, conv_alpha=4, algo="lora")
    network.apply_to()
    for weight in network.parameters():
        weight.data += torch.randn(weight.shape) * 0.1
    merged = base(mode)
    merged[0].weight.copy_(network.loras[0].get_merged_weight()[0].detach())
    return model(picture), merged(picture)


print(f"torch {version('torch')}, peft {version('peft')}, lycoris-lora {version('lycoris-lora')}:"
      " adapter and merged differ, as a part of the adapter's effect")
seen = {}
for kind in (*CONFIGS, "LyCORIS' LoRA"):
    for mode in ("zeros", "circular"):
        adapted, merged = (in_peft if kind in CONFIGS else in_lycoris)(kind, mode)
        effect, wrong = (merged - base(mode)(picture)).norm(), adapted - merged
        seen[kind, mode] = float(wrong.norm() / effect), float(wrong[..., 1:-1, 1:-1].norm() / effect)
        print(f"{kind}, {mode}: {seen[kind, mode][0]:.0%}, within the outermost pixels {seen[kind, mode][1]:.0%}")
as_stated = all(
    inside < 1e-4 and (whole > 0.1 if mode == "circular" else whole < 1e-4)
    for (_, mode), (whole, inside) in seen.items()
)
sys.exit(0 if as_stated else "This is no longer so.")
END
