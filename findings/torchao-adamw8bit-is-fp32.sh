#!/bin/sh
# torchao 0.18.0: AdamW8bit keeps the moments in 8 bits only if the number of elements is a multiple of 256.
#
# Expected: of a large trainable tensor the two moments take about a byte for each element, which is why one takes it.
# Instead: with any number that is not a multiple of the block size (256), 255 of 256 sizes, they are plain float32
# tensors, four times as large, without a warning. One element more and the saving is gone. AdamW4bit does likewise with
# blocks of 128. (Below 4096 elements all is float32; that is as in bitsandbytes, which pads the last block.)
# Why it matters: weights of linear layers are multiples of 256, so nobody sees it there. The trainable tensor of sparse
# fine-tuning is a vector of as many elements as were selected, any number: the memory estimate is wrong by the whole
# optimizer. Pad the vector to a multiple of 256. Torch's own state dict does not show it: both claim to be float32.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torchao==0.18.0
# The optimizer compiles its step; what is kept does not depend on that, and a compiler may be missing.
TORCHDYNAMO_DISABLE=1 "$dir/venv/bin/python" -W ignore - 2>/dev/null <<'END'
import sys
from importlib.metadata import version

import torch
from torchao.optim import AdamW4bit, AdamW8bit


def bytes_each(optimizer_class, count):
    """Bytes that the first moment takes for each of ``count`` elements after a step."""
    parameter = torch.nn.Parameter(torch.zeros(count))
    optimizer = optimizer_class([parameter])
    parameter.grad = torch.ones(count)
    optimizer.step()
    moment = optimizer.state[parameter]["exp_avg"]
    assert moment.dtype == torch.float32  # whatever it is inside
    if type(moment) is torch.Tensor:
        parts = [moment]
    else:
        parts = [getattr(moment, name) for name in moment.__tensor_flatten__()[0]]
    return round(sum(part.numel() * part.element_size() for part in parts) / count, 2)


print(f"torch {version('torch')}, torchao {version('torchao')}: bytes for each element of the first moment")
as_stated = True
for optimizer_class, most in ((AdamW8bit, 1.1), (AdamW4bit, 0.6)):
    multiple, one_more = bytes_each(optimizer_class, 65536), bytes_each(optimizer_class, 65537)
    print(f"{optimizer_class.__name__}: 65536 elements {multiple}, 65537 elements {one_more}")
    as_stated = as_stated and multiple < most and one_more == 4.0
if not as_stated:
    print("This is no longer so.")
sys.exit(0 if as_stated else 1)
END
