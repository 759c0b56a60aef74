"""Writes the test vectors of docs/format.md: delta files, beside each a JSON file that says what is in it, and the
identity of a base model.

    python tests/vectors/generate.py
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from sara_core.delta import SparseDelta, SparseEntry  # noqa: E402
from sara_core.delta.metadata import BASE_IDENTITY  # noqa: E402
from sara_core.models.identity import identity_of  # noqa: E402

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
METADATA = {
    "sara.family": "SD1.5",
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1/sara",
    "modelspec.implementation": "https://github.com/comfyui-sara/comfyui-sara",
    "modelspec.title": "Test vector",
}
# Name → dtype, shape; the elements are 0, 1, 2 … divided by 8. The bias and the pair are not part of an identity.
BASE = {
    "diffusion_model.out.2.weight": ("F32", [4, 3, 3, 3]),
    "diffusion_model.out.2.bias": ("F32", [4]),
    "diffusion_model.half.weight": ("F16", [10, 7]),
    "diffusion_model.brain.weight": ("BF16", [16, 15]),
    "diffusion_model.four.weight": ("F32", [1, 4]),
    "diffusion_model.pair.weight": ("F32", [1, 2]),
}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def main() -> None:
    entries = {
        name: SparseEntry(torch.tensor(positions, dtype=torch.int32), torch.tensor(values), tuple(shape))
        for name, (shape, positions, values) in CONTENT.items()
    }
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        SparseDelta(entries, METADATA).save(HERE / f"{name}.safetensors", dtype)
        expected = {
            "metadata": {
                **METADATA, "sara.version": "1", "modelspec.hash_sha256": content_hash(HERE / f"{name}.safetensors"),
            },
            "entries": {
                weight: {"shape": shape, "positions": positions, "values": values}
                for weight, (shape, positions, values) in CONTENT.items()
            },
        }
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    identity = {"base": BASE, "divided_by": 8, "identity": identity_of(base_weights())[BASE_IDENTITY]}
    (HERE / "base_identity.json").write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def base_weights() -> dict[str, torch.Tensor]:
    return {
        name: (torch.arange(torch.Size(shape).numel()) / 8).view(shape).to(DTYPES[dtype])
        for name, (dtype, shape) in BASE.items()
    }


def content_hash(path: Path) -> str:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return "0x" + hashlib.sha256(content[8 + length :]).hexdigest()


if __name__ == "__main__":
    main()
