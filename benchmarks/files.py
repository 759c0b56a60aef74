"""How large delta files are and how long they take, beside plain safetensors of int32 positions and bf16 values.

    python dev.py bench files [--elements N …] [--json FILE]

Random supports in weights of 1280 × 1280. Sizes are in bytes for each changed element, the whole file; the index is
compared with the entropy of its positions. Times are of deltas at 6 % density, in rounds that take the kinds of file in
turn: the median, and the fastest and slowest. All kinds are written by the same atomic, fsynced save, and read whole
into memory, from the page cache and (on Linux) from the disk.
"""

import argparse
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.lib.report import add_json_option, check_json_option, machine, machine_text, save
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta import file_v1
from sara_core.files import atomic, container

DENSITIES = (0.005, 0.01, 0.02, 0.06)
SIDE = 1280
SIZED_ELEMENTS = 1_000_000
TIMED_ELEMENTS = (1_000_000, 10_000_000, 50_000_000)
ROUNDS = 5
STEPS = ("save", "load, cached", "load, from disk")
PLAIN, SMALL, EXACT = "plain", "delta, bf16", "delta, fp32"

Seconds = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench files", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--elements", type=int, nargs="+", default=TIMED_ELEMENTS, metavar="N",
        help="of the deltas that are timed (default: %(default)s)",
    )  # fmt: skip
    add_json_option(parser)
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {density: sized(Path(folder), density) for density in DENSITIES}
        print("| density | bytes/element, fp32 | bf16 | index / entropy |\n|---|---|---|---|")
        for density, size in sizes.items():
            print(f"| {density:.1%} | {size['fp32']:.3f} | {size['bf16']:.3f} | {size['index']:.4f} |")
        times = {}
        for elements in arguments.elements:
            times[elements] = timed(Path(folder), random_delta(elements, DENSITIES[-1]))
            print_times(elements, times[elements])
    versions = {"torch": torch.__version__, "Python": platform.python_version()}
    print(machine_text(machine(), versions))
    report = {
        "machine": machine(),
        "versions": versions,
        "sizes": {f"{density:.1%}": size for density, size in sizes.items()},
        "seconds": times,
        "ratios": {elements: ratios(of_size) for elements, of_size in times.items()},
    }
    save(report, arguments.json, lambda figure: draw(figure, report))
    return 0


def print_times(elements: int, times: dict[str, Seconds]) -> None:
    print(f"\n{elements:,} elements, {os.cpu_count()} processors, ms\n\n| | {' | '.join(STEPS)} |\n|---|---|---|---|")
    for kind, seconds in times.items():
        cells = (
            f"{statistics.median(rounds) * 1000:.0f} ({min(rounds) * 1000:.0f} … {max(rounds) * 1000:.0f})"
            for rounds in seconds.values()
        )
        print(f"| {kind} | {' | '.join(cells)} |")
    said = ", ".join(f"{name} {ratio:.2f} ×" for name, ratio in ratios(times).items())
    print(f"\nThe bf16 delta takes, of plain safetensors: {said}")


def ratios(times: dict[str, Seconds]) -> dict[str, float]:
    """Median time of the bf16 delta over that of the plain file: of each step, and of saving and loading together."""
    ours, plain = ([statistics.median(rounds) for rounds in times[kind].values()] for kind in (SMALL, PLAIN))
    both = (ours[0] + ours[1]) / (plain[0] + plain[1])
    return {**{step: mine / other for step, mine, other in zip(STEPS, ours, plain)}, "save and load, cached": both}


def draw(figure, report: dict) -> None:
    sizes, times = figure.subplots(1, 2)
    for values in ("fp32", "bf16"):
        sizes.plot(list(report["sizes"]), [size[values] for size in report["sizes"].values()], "o-", label=values)
    sizes.set(title="size of the file", xlabel="density", ylabel="bytes an element", ylim=(0, None))
    for step in STEPS:
        elements = list(report["ratios"])
        times.plot(elements, [report["ratios"][count][step] for count in elements], "o-", label=step)
    times.set(title="time, bf16 delta ÷ plain safetensors", xlabel="elements", xscale="log", ylim=(0, None))
    for axes in (sizes, times):
        axes.legend()


def sized(folder: Path, density: float) -> dict[str, float]:
    """Bytes per element of the whole file in either dtype, and the index as a multiple of its entropy."""
    delta, path = random_delta(SIZED_ELEMENTS, density), folder / "sized.safetensors"
    result = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        delta.save(path, dtype)
        result[name] = path.stat().st_size / delta.nnz
    index = sum(len(file_v1.encode_indices(entry.indices.numpy())) for entry in delta.entries.values())
    return {**result, "index": index / sum(map(entropy, delta.entries.values()))}


def timed(folder: Path, delta: SparseDelta) -> dict[str, Seconds]:
    """Kind of file → step → seconds of each round."""
    plain = {}
    for name, (indices, values, _) in delta.entries.items():
        plain[f"{name}.indices"], plain[f"{name}.values"] = indices, values.to(torch.bfloat16)
    path = folder / "timed.safetensors"
    kinds = {
        PLAIN: (lambda: save_plain(path, plain), lambda: load_plain(path)),
        SMALL: (lambda: delta.save(path, torch.bfloat16), lambda: SparseDelta.load(path)),
        EXACT: (lambda: delta.save(path), lambda: SparseDelta.load(path)),
    }
    times = {kind: {step: [] for step in STEPS} for kind in kinds}
    for _ in range(ROUNDS):
        for kind, (write, read) in kinds.items():
            times[kind]["save"].append(seconds_of(write))
            times[kind]["load, cached"].append(seconds_of(read))
            forget(path)
            times[kind]["load, from disk"].append(seconds_of(read))
    return times


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


def seconds_of(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
