"""The costs by which training chooses, on this kind of processor, between sampled products and the dense gradient.

    python dev.py bench route_costs [--json FILE]

Prints, of layers of real shapes, what one thread takes for either (milliseconds of the processor, which others disturb
least) and what the committed costs choose, and fits costs to what was measured: for a processor that
`sara_core/backward/cpu_costs.py` does not know, or no longer knows well. Beside them stands the sampled product of
operands that are laid out with no regard to the processor's cache ("whole").
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib.report import check_json_option, machine, machine_text, text_table
from benchmarks.weight_gradient import convolution, linear
from sara_core.backward import ops
from sara_core.backward.cpu_costs import BF16, CONVOLUTION, COSTS, FP32, LINEAR, Costs, processor
from sara_core.backward.support import Support
from sara_core.backward.weight_gradient import sparse_weight_gradient

# Of SD1.5, SDXL and Flux: [out, in] and tokens; [out, in] and side.
LINEARS = ((320, 320, 4096), (640, 640, 1024), (1280, 1280, 256), (5120, 640, 1024), (640, 2560, 1024),
           (1280, 5120, 1024), (3072, 12288, 256))  # fmt: skip
CONVOLUTIONS = ((320, 320, 64), (640, 640, 32), (1280, 1280, 16), (640, 320, 32), (320, 320, 32))
DENSITIES = (0.006, 0.058)
SIZES = ("rows", "columns", "chosen", "tokens")
NAMES = {FP32: "fp32", BF16: "bf16"}
# Just below what glibc fetches anew each time whatever was freed.
MALLOC_SEES = 31 << 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench route_costs", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="of each, in turns (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny layers: only to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        parser.error("at least 1 repetition is needed")
    check_json_option(parser, arguments.json)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # The system's malloc keeps what is freed only up to the size of the largest blocks that it has seen: in a training
    # these are large, and without them the first layers here would be slower by the fetching of memory.
    torch.empty(MALLOC_SEES, dtype=torch.uint8)
    report = {"machine": machine(), "torch": torch.__version__, "processor": processor(), "measurements": []}
    for kind, layers in problems(arguments.small).items():
        for dtype in NAMES:
            rows = [row for layer in layers for row in measured(kind, layer, dtype, arguments.repetitions)]
            report["measurements"] += rows
            print("\n".join(text(kind, dtype, rows)), flush=True)
    print(machine_text(report["machine"], {"torch": torch.__version__}))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def problems(small: bool) -> dict[str, list]:
    """Kind → (op, shape of the weight, of the input, of the output's gradient) of each layer."""
    linears, convolutions = (((32, 32, 64),), ((16, 16, 8),)) if small else (LINEARS, CONVOLUTIONS)
    return {
        LINEAR: [linear(rows, columns, tokens, 1) for rows, columns, tokens in linears],
        CONVOLUTION: [convolution(rows, columns, side, 1) for rows, columns, side in convolutions],
    }


def measured(kind: str, layer, dtype: torch.dtype, repetitions: int) -> list[dict]:
    """One row for each density: the layer, and milliseconds of either route."""
    op, shape, of_input, of_output = layer
    elements = torch.Size(shape).numel()
    x, grad_output = torch.randn(of_input).to(dtype), torch.randn(of_output).to(dtype)
    segments = []
    for density in DENSITIES:
        index = torch.randperm(elements)[:int(density * elements)].sort().values.to(torch.int32)
        segments += Support.from_indices({"w": index}, {"w": shape}).segments
    calls: dict[tuple, Callable] = {}
    for number, segment in enumerate(segments):
        for route in ("csr", "dense"):
            problem = op, segment, x, grad_output, route
            calls[number, route] = lambda problem=problem: sparse_weight_gradient(*problem)
        calls[number, "whole"] = lambda call=calls[number, "csr"]: laid_out_whole(call)
    taken: dict[tuple, list[float]] = {key: [] for key in calls}
    for _ in range(repetitions + 1):
        for key, call in calls.items():
            start = time.process_time()
            call()
            taken[key].append((time.process_time() - start) * 1000)
    tokens = x.shape[1] if kind == LINEAR else x.shape[-1] ** 2
    return [
        {
            "kind": kind, "dtype": NAMES[dtype], "rows": segment.rows, "columns": segment.columns, "tokens": tokens,
            "chosen": len(segment),
            # The first of each warms up.
            **{route: statistics.median(taken[number, route][1:]) for route in ("csr", "dense", "whole")},
        }
        for number, segment in enumerate(segments)
    ]  # fmt: skip


def laid_out_whole(call: Callable[[], object]) -> None:
    """A call without the bounds within which the CPU lays out."""
    before = ops.CACHED_BYTES, ops.MOST_TOKENS
    ops.CACHED_BYTES = ops.MOST_TOKENS = sys.maxsize
    try:
        call()
    finally:
        ops.CACHED_BYTES, ops.MOST_TOKENS = before


def fitted(rows: list[dict]) -> Costs:
    """The costs that foretell the measured times best, each time as important as another."""
    def least_squares(columns: list[list[float]], times: list[float]) -> np.ndarray:
        relative = np.array(columns).T / np.array(times)[:, None]
        return np.linalg.lstsq(relative, np.ones(len(times)), rcond=None)[0] * 1e9  # milliseconds → picoseconds

    layout, product = least_squares(
        [[(row["rows"] + row["columns"]) * row["tokens"] for row in rows],
         [row["chosen"] * row["tokens"] for row in rows]],
        [row["csr"] for row in rows],
    )  # fmt: skip
    elements = [row["rows"] * row["columns"] for row in rows]
    dense, weight = least_squares(
        [[size * row["tokens"] for size, row in zip(elements, rows)], elements], [row["dense"] for row in rows]
    )
    return Costs(*(float(f"{cost:.3g}") for cost in (layout, product, dense, weight)))


def text(kind: str, dtype: torch.dtype, rows: list[dict]) -> list[str]:
    known = COSTS.get((processor(), kind, dtype))
    cells = []
    for row in rows:
        density = row["chosen"] / (row["rows"] * row["columns"])
        name = f"{row['rows']}×{row['columns']}, {row['tokens']} tokens, {density:.1%}"
        foretold = "–"
        if known is not None:
            foretold = "sampled" if known.sampled_pays(*(row[key] for key in SIZES)) else "dense"
        measured = "sampled" if row["csr"] <= row["dense"] else "dense"
        cells.append([name, *(f"{row[route]:.2f}" for route in ("whole", "csr", "dense")), measured, foretold])
    header = [f"{kind}, {NAMES[dtype]}, ms", "whole", "sampled", "dense", "faster", "chosen"]
    return ["", *text_table(header, cells), f"fitted: {fitted(rows)}; committed: {known}"]


if __name__ == "__main__":
    sys.exit(main())
