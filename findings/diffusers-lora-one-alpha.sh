#!/bin/sh
# diffusers 0.42.1: a Stable Diffusion LoRA whose layers differ in rank gets one alpha for all attention layers.
#
# Expected: each layer is applied at alpha / rank of its own, here 1.0 everywhere (the file says alpha = rank).
# Instead: the alphas come out of the conversion under names such as `attn1.processor.to_k_lora.down.weight`, which are
# not the modules' (`attn1.to_k`). The ranks are matched, the alphas are not: every layer gets the alpha that is found
# most often. Layers of rank 8 are applied x 0.25, where most have rank 2; the other way round those of rank 2 x 4. PEFT
# gives a RuntimeWarning about "alpha_pattern keys", which does not say that strengths are wrong; nothing fails.
# Why it matters: LoRAs extracted from a tuned model choose a rank for each layer, and "resize" tools do too. The
# picture is merely off. Whoever ships one for diffusers pads all layers to one rank, or scales alpha into the factors
# and leaves the alphas out: both give 1.0.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel


def scales(rank_of, alphas=True):
    """Of each rank: the scales of its layers in diffusers, from a LoRA in kohya's names with alpha = rank."""
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )
    names = [name for name, _ in unet.named_modules() if name.endswith((".to_q", ".to_k", ".to_v"))]
    lora = {}
    for name in names:
        key, rank = "lora_unet_" + name.replace(".", "_"), rank_of[name[-1]]
        lora[key + ".lora_down.weight"] = torch.ones(rank, unet.get_submodule(name).in_features)
        lora[key + ".lora_up.weight"] = torch.ones(unet.get_submodule(name).out_features, rank)
        if alphas:
            lora[key + ".alpha"] = torch.tensor(float(rank))
    state_dict, network_alphas = StableDiffusionPipeline.lora_state_dict(lora, unet_config=unet.config)
    StableDiffusionPipeline.load_lora_into_unet(state_dict, network_alphas, unet, adapter_name="it")
    layers = [unet.get_submodule(name) for name in names]
    return {rank: {layer.scaling["it"] for layer in layers if layer.r["it"] == rank} for rank in rank_of.values()}


mostly_2 = scales({"q": 2, "k": 8, "v": 2})
mostly_8 = scales({"q": 8, "k": 2, "v": 8})
one_rank = scales({"q": 8, "k": 8, "v": 8})
without = scales({"q": 2, "k": 8, "v": 2}, alphas=False)
print(f"torch {version('torch')}, diffusers {version('diffusers')}, peft {version('peft')}: rank: scales (1 is right)")
print(f"to_k of rank 8, the rest 2: {mostly_2}\nto_k of rank 2, the rest 8: {mostly_8}")
print(f"all of rank 8: {one_rank}\nto_k of rank 8, the rest 2, no alphas in the file: {without}")
as_stated = mostly_2 == {2: {1.0}, 8: {0.25}} and mostly_8 == {8: {1.0}, 2: {4.0}}
as_stated = as_stated and one_rank == {8: {1.0}} and without == {2: {1.0}, 8: {1.0}}
sys.exit(0 if as_stated else "This is no longer so.")
END
