"""python -m sara_core merge OUT A.safetensors=0.6 B.safetensors=-0.4 [--method sum|mean|ties|dare]"""

import argparse

from ..delta.file_v1 import SUFFIX, VALUE_BYTES
from ..files.disk import check_room
from ..merging.block_factors import ALL_BLOCKS, block_presets, parse_blocks
from ..merging.merge import METHODS, SIGNS, MergeSettings, merge_with_report
from .options import number
from .target import check_target
from .weighted import WeightedFile

HELP = "merge deltas into one, each with its weight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare OUT, the deltas, each with its weight, and the fields of MergeSettings."""
    defaults = MergeSettings()
    parser.add_argument("target", metavar="OUT", help="the merged delta, a .safetensors file")
    parser.add_argument("deltas", metavar="FILE[=WEIGHT]", nargs="+", type=WeightedFile.parse, help="weight: default 1")
    parser.add_argument("--method", choices=METHODS, default=defaults.method, help="default %(default)s")
    parser.add_argument(
        "--keep", type=number(above=0, most=1), default=defaults.keep,
        help="share of each delta's changes that ties and dare take (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--sign", choices=SIGNS, default=defaults.sign, help="what ties votes by: default %(default)s")
    parser.add_argument(
        "--seed", type=number(whole=True), default=defaults.seed, help="of dare's choice (default %(default)s)"
    )
    parser.add_argument("--preset", choices=block_presets(), default=ALL_BLOCKS, help="parts of the model to merge")
    parser.add_argument(
        "--block", action="append", default=[], metavar="'WORDS = FACTOR'",
        help="a factor for parts of the model, such as 'output_blocks = 0.5'; may be given several times",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> str:
    """Merge and save; returns the report."""
    check_target(arguments.target, SUFFIX)
    blocks = (*block_presets()[arguments.preset], *parse_blocks("\n".join(arguments.block)))
    settings = MergeSettings(arguments.method, arguments.keep, arguments.sign, arguments.seed, blocks)
    names, weights = [file.path.stem for file in arguments.deltas], [file.weight for file in arguments.deltas]
    deltas = [file.load() for file in arguments.deltas]
    if arguments.method in ("sum", "mean"):  # which keep every change
        check_room(arguments.target, VALUE_BYTES * max(delta.nnz for delta in deltas), "The merged delta")
    merged, report = merge_with_report(deltas, weights, settings, names)
    merged.save(arguments.target)
    return report.text()
