#!/bin/sh
# lycoris-lora 4.1.3: of a small convolution the extracted "sparse bias" holds the tuned weights, not what the LoRA leaves.
#
# Expected: extract_diff(use_bias=True) writes a LoRA of (tuned - base) and, sparse beside it, the largest elements of what
# the LoRA leaves of it: both together are nearer to (tuned - base) than the LoRA alone. So it is for Linear layers and 1 x 1
# convolutions.
# Instead: of a 3 x 3 convolution with small_conv=True, the default, the remainder is computed from the tuned weight itself
# instead of from its difference. Adding it, as SD.Next does, adds most of the base model a second time.
# Why it matters: nothing in the file tells the two apart but the Tucker core (lora_mid.weight) beside it. LyCORIS itself and
# ComfyUI never read the remainder, so whoever tests there sees nothing; a loader or converter that does read it has to leave
# it out beside a core.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 lycoris-lora==4.1.3
"$dir/venv/bin/python" -W ignore - 2> "$dir/progress" <<'END' || { cat "$dir/progress"; exit 1; }
import copy
import sys
from importlib.metadata import version

import torch
from lycoris.utils import extract_diff

torch.manual_seed(0)
base = torch.nn.ModuleDict({"linear": torch.nn.Linear(32, 48), "conv1": torch.nn.Conv2d(16, 32, 1),
                            "conv3": torch.nn.Conv2d(16, 32, 3)})
tuned = copy.deepcopy(base)
with torch.no_grad():
    for parameter in tuned.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))


def left(layer, file, with_remainder):
    """What a reading leaves of (tuned - base), as a multiple of that."""
    part = {name.split(".", 1)[1]: tensor.float() for name, tensor in file.items() if name.startswith(f"lora_unet_{layer}.")}
    change = tuned[layer].weight - base[layer].weight
    up, down = part["lora_up.weight"].flatten(1), part["lora_down.weight"].flatten(1)
    if "lora_mid.weight" in part:
        made = torch.einsum("mnkl,im,nj->ijkl", part["lora_mid.weight"], up, down)
    else:
        made = (up @ down).view_as(change)
    if with_remainder:
        sparse = torch.sparse_coo_tensor(part["bias_indices"].long(), part["bias_values"], part["bias_size"].int().tolist())
        made = made + sparse.to_dense().view_as(change)
    return float((change - made).norm() / change.norm())


print(f"torch {version('torch')}, lycoris-lora {version('lycoris-lora')}")
as_stated = True
for small_conv in (False, True):
    found = extract_diff([], [], base, tuned, "fixed", 4, 4, use_bias=True, sparsity=0.5, small_conv=small_conv)
    file = found[0] if isinstance(found, tuple) else found
    for layer in base:
        without, beside = left(layer, file, False), left(layer, file, True)
        print(f"small_conv {small_conv}, {layer}: the LoRA alone leaves {without:.2f}, with its remainder {beside:.2f}")
        holds_weights = small_conv and layer == "conv3"
        as_stated &= beside > 2 * without if holds_weights else beside < 0.5 * without
sys.exit(0 if as_stated else "This is no longer so.")
END
