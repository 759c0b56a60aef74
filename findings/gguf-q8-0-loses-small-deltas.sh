#!/bin/sh
# gguf 0.19.0: for small values the 8-bit format Q8_0 is worse than the 4-bit Q4_0, and at last keeps nothing.
#
# Expected: block formats have a scale for each 32 values, so the relative error does not depend on how large the values
# are; more bits are never worse.
# Instead: the scale is a float16 and in Q8_0 it is the block's largest value / 127. For values of about 1e-5 (normal in
# a fine-tuning delta) it falls among float16's subnormal numbers and is rounded by up to a half: the error goes from
# 0.5 % to 10 %, more than Q4_0's, whose scale is 16 times as large. At 1e-6 Q8_0 is all zeros, Q4_0 still good; at 1e-7
# Q5_1, whose rounded-up scale makes values too large, is worse than zeros (error above 1). No warning; weights, of
# about 1e-2, never get there.
# Why it matters: who ships a delta, a LoRA or an embedding as GGUF "at 8 bits, to be safe" ships noise or nothing. BF16
# has no such limit. Multiply the delta up before, and note the factor, if it must be a block format.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 gguf==0.19.0
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

NORMAL = np.random.default_rng(0).standard_normal((64, 256))


def error(size, name):
    """The relative error of values of about ``size`` after quantising and back."""
    values, kind = (size * NORMAL).astype(np.float32), GGMLQuantizationType[name]
    return float(np.linalg.norm(dequantize(quantize(values, kind), kind) - values) / np.linalg.norm(values))


print(f"numpy {version('numpy')}, gguf {version('gguf')}: relative error")
errors = {}
for size in (1e-2, 1e-4, 1e-5, 1e-6, 1e-7):
    errors[size] = {name: error(size, name) for name in ("Q8_0", "Q5_1", "Q4_0", "BF16")}
    print(f"values of about {size:g}: " + ", ".join(f"{name} {value:.4f}" for name, value in errors[size].items()))
as_stated = (
    errors[1e-2]["Q8_0"] < 0.01 < errors[1e-2]["Q5_1"] < errors[1e-2]["Q4_0"] < 0.1
    and errors[1e-5]["Q8_0"] > errors[1e-5]["Q4_0"]
    and errors[1e-6]["Q8_0"] > 0.99 and errors[1e-6]["Q4_0"] < 0.15
    and errors[1e-7]["Q5_1"] > 1.5
    and all(of_size["BF16"] < 0.002 for of_size in errors.values())
)
sys.exit(0 if as_stated else "This is no longer so.")
END
