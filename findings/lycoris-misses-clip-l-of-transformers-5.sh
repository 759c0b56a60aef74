#!/bin/sh
# lycoris-lora 4.1.3 beside transformers 5.24.0: of an SDXL LoRA the part for CLIP-L is left out, that for CLIP-G is not.
#
# Expected: a file with `lora_te1_text_model_encoder_layers_…` and `lora_te2_text_model_encoder_layers_…`, as every
# trainer has written them for years, changes both text encoders.
# Instead: transformers 5 has taken the level `text_model` out of CLIPTextModel (5.5.4 still has it) and left it in
# CLIPTextModelWithProjection. LyCORIS goes by the names of the modules: it finds the second encoder's, not the first's,
# and says how many it has found, not how many it has not. Of Stable Diffusion 1.5, with CLIP-L alone, nothing is left.
# The other way round a LoRA that is trained there calls its layers `lora_te1_encoder_layers_…`, for which programs that
# list the names they know have no place.
# Why it matters: training goes on, or a checkpoint is made, with half of the text part, and nothing fails. Whoever reads
# such files has to take both names for one layer.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    lycoris-lora==4.1.3 toml==0.10.2
"$dir/venv/bin/python" -W ignore - "$dir/lora.safetensors" <<'END'
import logging
import sys
from importlib.metadata import version

import torch
from lycoris.kohya import create_network, create_network_from_weights
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

logging.disable(logging.WARNING)
LAYER = "text_model_encoder_layers_0_mlp_fc1"
config = CLIPTextConfig(
    vocab_size=9, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8,
    bos_token_id=0, eos_token_id=1, pad_token_id=2,
)
encoders, unet = [CLIPTextModel(config), CLIPTextModelWithProjection(config)], torch.nn.Module()


def layer(encoder):
    """The weight that the file changes, wherever it is."""
    return next(weight for name, weight in encoder.named_parameters() if name.endswith("layers.0.mlp.fc1.weight"))


file = {}
for encoder in ("lora_te1_", "lora_te2_"):
    file[f"{encoder}{LAYER}.lora_down.weight"] = torch.ones(1, 8)
    file[f"{encoder}{LAYER}.lora_up.weight"] = torch.ones(16, 1)
    file[f"{encoder}{LAYER}.alpha"] = torch.tensor(1.0)
save_file(file, sys.argv[1])
before = [layer(encoder).detach().clone() for encoder in encoders]
network, tensors = create_network_from_weights(1.0, sys.argv[1], None, encoders, unet)
network.merge_to(encoders, unet, tensors, torch.float32, "cpu")
changes = [round(float((layer(now) - old).detach().mean()), 3) for now, old in zip(encoders, before)]
trained = create_network(1.0, 1, 1, None, encoders, unet)
names = [lora.lora_name for lora in trained.text_encoder_loras if lora.lora_name.endswith("mlp_fc1")]
print(f"lycoris-lora {version('lycoris-lora')}, transformers {version('transformers')}")
print(f"the file changes every element by 1; change found in CLIP-L {changes[0]}, in CLIP-G {changes[1]}")
print(f"what it calls these layers when it trains them: {', '.join(names)}")
as_stated = changes == [0, 1] and names == ["lora_te1_encoder_layers_0_mlp_fc1", f"lora_te2_{LAYER}"]
sys.exit(0 if as_stated else "This is no longer so.")
END
