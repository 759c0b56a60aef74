"""How large delta files are and how long they take, beside plain safetensors of int32 positions and the same values.

    python dev.py bench files [--elements N …] [--json FILE]

Random supports in weights of 1280 × 1280. Sizes are in bytes for each changed element, the whole file; the index is
compared with the entropy of its positions. Times are of deltas at 0.6 and 6 % density, in rounds that take the kinds of
file in turn: the median, and the fastest and slowest; ratios are of a round each. All kinds are written by the same
atomic, fsynced save, and read whole into memory, from the page cache and (on Linux) from the disk.
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
from functools import partial
from pathlib import Path

import torch

from benchmarks.lib.report import Spread, add_json_option, check_json_option, machine, machine_text, save
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta import file_v1
from sara_core.files import atomic, container

DENSITIES = (0.006, 0.01, 0.02, 0.06)
TIMED_DENSITIES = (0.006, 0.06)
SIDE = 1280
SIZED_ELEMENTS = 1_000_000
TIMED_ELEMENTS = (1_000_000, 10_000_000, 50_000_000)
ROUNDS = 5
STEPS = ("save", "load, cached", "load, from disk")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

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
        for density in TIMED_DENSITIES:
            for elements in arguments.elements:
                case = f"{elements:,} elements at {density:.1%}"
                times[case] = timed(Path(folder), random_delta(elements, density))
                print_times(case, times[case])
    versions = {"torch": torch.__version__, "Python": platform.python_version(), "threads": torch.get_num_threads()}
    print(machine_text(machine(), versions))
    report = {
        "machine": machine(),
        "versions": versions,
        "sizes": {f"{density:.1%}": size for density, size in sizes.items()},
        "seconds": times,
        "ratios": {case: {name: ratios(of_case, name) for name in DTYPES} for case, of_case in times.items()},
    }
    save(report, arguments.json, lambda figure: draw(figure, report))
    return 0


def print_times(case: str, times: dict[str, Seconds]) -> None:
    print(f"\n{case}, {os.cpu_count()} processors, ms\n\n| | {' | '.join(STEPS)} |\n|---|---|---|---|")
    for kind, seconds in times.items():
        cells = (
            f"{statistics.median(rounds) * 1000:.0f} ({min(rounds) * 1000:.0f} … {max(rounds) * 1000:.0f})"
            for rounds in seconds.values()
        )
        print(f"| {kind} | {' | '.join(cells)} |")
    for name in DTYPES:
        said = ", ".join(
            f"{step} {ratio.median:.2f} × ({ratio.low:.2f} … {ratio.high:.2f})"
            for step, ratio in ratios(times, name).items()
        )
        print(f"\nThe {name} delta takes, of plain safetensors: {said}")


def ratios(times: dict[str, Seconds], dtype: str) -> dict[str, Spread]:
    """Step → time of the delta over that of the plain file in the same round."""
    ours, plain = times[f"delta, {dtype}"], times[f"plain, {dtype}"]
    return {step: Spread.of(mine / other for mine, other in zip(ours[step], plain[step])) for step in STEPS}


def draw(figure, report: dict) -> None:
    sizes, times = figure.subplots(1, 2)
    for values in ("fp32", "bf16"):
        sizes.plot(list(report["sizes"]), [size[values] for size in report["sizes"].values()], "o-", label=values)
    sizes.set(title="size of the file", xlabel="density", ylabel="bytes an element", ylim=(0, None))
    for step in STEPS:
        cases = [case.replace(" elements at ", "\n") for case in report["ratios"]]
        times.plot(cases, [of_case["bf16"][step].median for of_case in report["ratios"].values()], "o", label=step)
    times.set(title="time, bf16 delta ÷ plain safetensors", xlabel="elements and density", ylim=(0, None))
    for axes in (sizes, times):
        axes.legend()


def sized(folder: Path, density: float) -> dict[str, float]:
    """Bytes per element of the whole file in either dtype, and the index as a multiple of its entropy."""
    delta, path = random_delta(SIZED_ELEMENTS, density), folder / "sized.safetensors"
    result = {}
    for name, dtype in DTYPES.items():
        delta.save(path, dtype)
        result[name] = path.stat().st_size / delta.nnz
    index = sum(len(file_v1.encode_indices(entry.indices.numpy())) for entry in delta.entries.values())
    return {**result, "index": index / sum(map(entropy, delta.entries.values()))}


def timed(folder: Path, delta: SparseDelta) -> dict[str, Seconds]:
    """Kind of file → step → seconds of each round."""
    path = folder / "timed.safetensors"
    kinds = {}
    for name, dtype in DTYPES.items():
        kinds[f"plain, {name}"] = (partial(save_plain, path, plain_tensors(delta, dtype)), partial(load_plain, path))
        kinds[f"delta, {name}"] = (partial(delta.save, path, dtype), partial(SparseDelta.load, path))
    times = {kind: {step: [] for step in STEPS} for kind in kinds}
    for _ in range(ROUNDS):
        for kind, (write, read) in kinds.items():
            times[kind]["save"].append(seconds_of(write))
            times[kind]["load, cached"].append(seconds_of(read))
            forget(path)
            times[kind]["load, from disk"].append(seconds_of(read))
    return times


def plain_tensors(delta: SparseDelta, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A delta's positions, int32, and values as tensors of a plain file."""
    return {
        f"{name}.{part}": tensor
        for name, entry in delta.entries.items()
        for part, tensor in (("indices", entry.indices), ("values", entry.values.to(dtype)))
    }


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
