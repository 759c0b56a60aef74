#!/bin/sh
# torch 2.13.0, CPU: shuffling channels takes several times as long in bfloat16 and float16 as in float32.
#
# Expected: half the bytes take no more time, as everywhere else where nothing is computed: a plain copy does.
# Instead: of channels-last tensors F.channel_shuffle transposes each pixel by a vectorised kernel in float32, the
# fastest transposition that torch has on a CPU, 3 times as fast as t().contiguous(); and element by element in bfloat16
# and float16. Casting to float32, shuffling and casting back is faster than shuffling.
# Why it matters: ShuffleNets and whoever transposes that way are slower for being put into half precision.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'END'
import statistics
import sys
import time
from importlib.metadata import version

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
GROUPS, CHANNELS = 256, 256 * 640


def pixels(dtype):
    return torch.randn(1, CHANNELS, 8, 1).to(dtype).contiguous(memory_format=torch.channels_last)


def through_float32(half):
    return F.channel_shuffle(half.float(), GROUPS).to(half.dtype)


single, brain, half = map(pixels, (torch.float32, torch.bfloat16, torch.float16))
assert torch.equal(F.channel_shuffle(brain, GROUPS), through_float32(brain))
ways = {
    "float32": lambda: F.channel_shuffle(single, GROUPS), "bfloat16": lambda: F.channel_shuffle(brain, GROUPS),
    "float16": lambda: F.channel_shuffle(half, GROUPS), "bfloat16 through float32": lambda: through_float32(brain),
    "copying float32": single.clone, "copying bfloat16": brain.clone,
}  # fmt: skip
taken = {name: [] for name in ways}
for _ in range(41):
    for name, way in ways.items():
        start = time.process_time()
        way()
        taken[name].append(time.process_time() - start)
medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
print(f"torch {version('torch')}, {torch.backends.cpu.get_cpu_capability()}, one thread, seconds of the processor")
for name, seconds in medians.items():
    print(f"{name}: {seconds * 1000:.2f} ms, {seconds / medians['float32']:.2f} x float32")
as_stated = min(medians["bfloat16"], medians["float16"]) > 1.5 * medians["float32"]
as_stated &= medians["bfloat16 through float32"] < medians["bfloat16"]
as_stated &= medians["copying bfloat16"] < medians["copying float32"]
sys.exit(0 if as_stated else "This is no longer so.")
END
