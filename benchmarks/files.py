"""How large delta files are and how long they take, beside plain safetensors of int32 positions and bf16 values.

    python dev.py bench files [--elements N] [--json FILE]

Random supports in weights of 1280 × 1280. Sizes are in bytes for each changed element, the whole file; the index is
compared with the entropy of its positions. Times are the best of three for one delta at 6 % density: both kinds of
file are written by the same atomic, fsynced save, and read whole into memory, from the page cache and (on Linux) from
the disk.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from sara_core import atomic
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.formats import container, sara

DENSITIES = (0.005, 0.01, 0.02, 0.06)
SIDE = 1280
SIZED_ELEMENTS = 1_000_000
TIMED_ELEMENTS = 50_000_000
REPETITIONS = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench files", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--elements", type=int, default=TIMED_ELEMENTS, help=f"of the delta that is timed (default: {TIMED_ELEMENTS:,})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {density: sized(Path(folder), density) for density in DENSITIES}
        times = timed(Path(folder), random_delta(arguments.elements, DENSITIES[-1]))
    print("| density | bytes/element, fp32 | bf16 | index / entropy |\n|---|---|---|---|")
    for density, size in sizes.items():
        print(f"| {density:.1%} | {size['fp32']:.3f} | {size['bf16']:.3f} | {size['index']:.4f} |")
    print("\n| | save s | load s, cached | load s, from disk | save + load, cached |\n|---|---|---|---|---|")
    for name, (save, cached, from_disk) in times.items():
        print(f"| {name} | {save:.2f} | {cached:.2f} | {from_disk:.2f} | {save + cached:.2f} |")
    ratios = [ours / plain for ours, plain in zip(times["delta, bf16"], times["plain"])]
    both = sum(times["delta, bf16"][:2]) / sum(times["plain"][:2])
    print(
        f"\n{arguments.elements:,} elements, {os.cpu_count()} processors. The bf16 delta takes, of plain safetensors: "
        f"saving {ratios[0]:.2f} ×, loading {ratios[1]:.2f} × (from disk {ratios[2]:.2f} ×), both {both:.2f} ×"
    )
    if arguments.json:
        report = {"sizes": {f"{density:.1%}": size for density, size in sizes.items()}, "seconds": times}
        arguments.json.write_text(json.dumps({**report, "elements": arguments.elements}, indent=1), encoding="utf-8")
    return 0


def sized(folder: Path, density: float) -> dict[str, float]:
    """Bytes per element of the whole file in either dtype, and the index as a multiple of its entropy."""
    delta, path = random_delta(SIZED_ELEMENTS, density), folder / "sized.safetensors"
    result = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        delta.save(path, dtype)
        result[name] = path.stat().st_size / delta.nnz
    index = sum(len(sara.encode_indices(entry.indices.numpy())) for entry in delta.entries.values())
    return {**result, "index": index / sum(map(entropy, delta.entries.values()))}


def timed(folder: Path, delta: SparseDelta) -> dict[str, tuple[float, float, float]]:
    """Kind of file → seconds to save, to load from the page cache, and to load from the disk."""
    path = folder / "timed.safetensors"
    plain = {}
    for name, (indices, values, _) in delta.entries.items():
        plain[f"{name}.indices"], plain[f"{name}.values"] = indices, values.to(torch.bfloat16)
    kinds = {
        "plain": (lambda: save_plain(path, plain), lambda: load_plain(path)),
        "delta, bf16": (lambda: delta.save(path, torch.bfloat16), lambda: SparseDelta.load(path)),
        "delta, fp32": (lambda: delta.save(path), lambda: SparseDelta.load(path)),
    }
    return {name: (best(save), best(load), best(load, lambda: forget(path))) for name, (save, load) in kinds.items()}


def save_plain(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with atomic.replacing(path) as file:
        container.write(file, tensors, {})


def load_plain(path: Path) -> dict[str, torch.Tensor]:
    with container.opened(path) as file:
        # What is not copied stays in the file and is not read at all.
        return {name: file.get_tensor(name).clone() for name in file.keys()}


def random_delta(elements: int, density: float) -> SparseDelta:
    generator = torch.Generator().manual_seed(0)
    entries = {}
    while elements > 0:
        chosen = (torch.rand(SIDE * SIDE, generator=generator) < density).nonzero().view(-1)[:elements]
        values = torch.randn(len(chosen), generator=generator) * 1e-3
        entries[f"diffusion_model.{len(entries)}.weight"] = SparseEntry(chosen.to(torch.int32), values, (SIDE, SIDE))
        elements -= len(chosen)
    return SparseDelta(entries)


def entropy(entry: SparseEntry) -> float:
    """Bytes that the positions need, were each element chosen independently."""
    share = len(entry.indices) / entry.numel
    return entry.numel * -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8


def forget(path: Path) -> None:
    """Take the file out of the page cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def best(function, before=lambda: None) -> float:
    seconds = []
    for _ in range(REPETITIONS):
        before()
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
