"""Writing the elements of a delta into a weight, by itself: what each takes of the processor.

    python dev.py bench in_place [--rounds N] [--json FILE]

Writing: at another strength, with the base values kept. Putting on: base values are kept, and the change is written.
One for another: a delta is taken off and another, of other elements, is put on. The last two also as a ratio: what the
library does in one walk through the weight, ÷ the same in one walk for each thing. One thread; the ways take turns, and
a figure is the median of the rounds, in nanoseconds of the processor for each element.
"""

import argparse
import sys
import time
from argparse import Namespace
from collections.abc import Callable

import torch

from benchmarks.lib.report import Spread, add_json_option, check_json_option, machine, machine_text, save, text_table
from sara_core.tensors.elements import gather, overwrite_, scatter_
from sara_core.tensors.replacing import replace_

# Rows, columns, how many of such weights (so that no cache holds them all), density, dtype.
CASES = (
    (1280, 11520, 3, 0.06, torch.float32), (1280, 1280, 20, 0.06, torch.float32),
    (1280, 11520, 3, 0.006, torch.float32), (1280, 11520, 3, 0.06, torch.bfloat16),
)  # fmt: skip
STRENGTH = 0.8
WAYS = ("writing", "putting on", "in turn", "one for another", "in turn, too")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench in_place", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="of all ways (default: %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "threads": 1}
    report = {"machine": machine(), "versions": versions, "cases": measured(arguments)}
    print("\n".join(text(report)))
    save(report, arguments.json, lambda figure: draw(figure, report))
    return 0


def measured(arguments: Namespace) -> dict[str, dict[str, list[float]]]:
    """Case → way → nanoseconds an element, round by round."""
    found = {}
    for rows, columns, count, density, dtype in CASES:
        name = f"{str(dtype).removeprefix('torch.')} {rows}×{columns}, {density:.1%}"
        found[name] = {way: [] for way in WAYS}
        ways, elements = ways_of([torch.randn(rows, columns).to(dtype) for _ in range(count)], density)
        for _ in range(arguments.rounds):
            for way, nanoseconds in zip(WAYS, map(processor_nanoseconds, ways)):
                found[name][way].append(nanoseconds / elements)
    return found


def ways_of(weights: list[torch.Tensor], density: float) -> tuple[list[Callable[[], None]], int]:
    """What is measured, in the order of WAYS, each of which leaves the weights as they were or with the first delta's
    elements written; and the number of elements."""
    first, second = ([random_change(weight, density) for weight in weights] for _ in range(2))
    base = [gather(weight, indices) for weight, (indices, _) in zip(weights, first)]

    def write():
        for weight, (indices, values), kept in zip(weights, first, base):
            overwrite_(weight, indices, kept, values, STRENGTH)

    def put_on(change):
        return [replace_(weight, *of, STRENGTH) for weight, of in zip(weights, change)]

    def put_on_in_turn(change):
        kept = [gather(weight, indices) for weight, (indices, _) in zip(weights, change)]
        for weight, (indices, values), before in zip(weights, change, kept):
            overwrite_(weight, indices, before, values, STRENGTH)
        return kept

    def exchange():
        for weight, change, (indices, _), kept in zip(weights, second, first, base):
            replace_(weight, *change, STRENGTH, (indices, kept))

    def exchange_in_turn():
        for weight, (indices, _), kept in zip(weights, first, base):
            scatter_(weight, indices, kept)
        put_on_in_turn(second)

    one_by_one = [write, lambda: put_on(first), lambda: put_on_in_turn(first), exchange, exchange_in_turn]
    return one_by_one, sum(len(indices) for indices, _ in first)


def random_change(weight: torch.Tensor, density: float) -> tuple[torch.Tensor, torch.Tensor]:
    indices = (torch.rand(weight.numel()) < density).nonzero().view(-1).int()
    return indices, torch.randn(len(indices)) * 1e-3


def processor_nanoseconds(function: Callable[[], object]) -> float:
    start = time.process_time_ns()
    function()
    return time.process_time_ns() - start


def text(report: dict) -> list[str]:
    rows = []
    for name, ways in report["cases"].items():
        cells = [f"{Spread.of(ways[way]).median:.1f}" for way in WAYS]
        ratios = [
            Spread.of(one / other for one, other in zip(ways[WAYS[place]], ways[WAYS[place + 1]])).text(2)
            for place in (1, 3)
        ]  # fmt: skip
        rows.append([name, *cells, *ratios])
    return [*text_table(["", *WAYS, "÷ in turn", "÷ in turn, too"], rows),
            "", machine_text(report["machine"], report["versions"])]  # fmt: skip


def draw(figure, report: dict) -> None:
    axes = figure.subplots()
    for way in WAYS:
        medians = [Spread.of(ways[way]).median for ways in report["cases"].values()]
        axes.plot(list(report["cases"]), medians, "o", label=way)
    axes.set(ylabel="ns an element", ylim=(0, None))
    axes.legend()


if __name__ == "__main__":
    sys.exit(main())
