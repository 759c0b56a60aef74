"""Writes the test vectors of docs/format.md: delta files, and beside each a JSON file that says what is in it.

    python tests/vectors/generate.py
"""

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from sara_core.delta import SparseDelta, SparseEntry  # noqa: E402

# Name → shape, positions, values. All values are exact in bfloat16.
CONTENT = {
    "diffusion_model.page_example.weight": ([40, 40], [0, 2, 3, 300, 1000], [0.5, -0.25, 1.0, -2.0, 0.125]),
    "diffusion_model.convolution.weight": ([4, 3, 3, 3], [0, 53, 107], [1.5, -1.5, 0.0078125]),
    "diffusion_model.convolution.bias": ([4], [3], [-0.75]),
    "diffusion_model.gaps_of_254_to_256.weight": ([1100], [254, 510, 767, 1099], [1.0, 2.0, 3.0, 4.0]),
    "diffusion_model.all_elements.weight": ([2, 2], [0, 1, 2, 3], [0.0, -0.0, 1.0, -1.0]),
    "diffusion_model.no_elements.weight": ([5, 5], [], []),
    "diffusion_model.scalar": ([], [0], [0.0625]),
}
METADATA = {"sara.family": "SD1.5", "modelspec.title": "Test vector"}


def main() -> None:
    entries = {
        name: SparseEntry(torch.tensor(positions, dtype=torch.int32), torch.tensor(values), tuple(shape))
        for name, (shape, positions, values) in CONTENT.items()
    }
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        SparseDelta(entries, METADATA).save(HERE / f"{name}.safetensors", dtype)
        expected = {
            "metadata": {**METADATA, "sara.version": "1"},
            "entries": {
                weight: {"shape": shape, "positions": positions, "values": values}
                for weight, (shape, positions, values) in CONTENT.items()
            },
        }
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
