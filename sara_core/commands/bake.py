"""python -m sara_core bake BASE OUT DELTA[=STRENGTH] [DELTA[=STRENGTH] …]"""

import argparse

from ..merging.merge import MergeSettings, merge_with_report
from ..models.bake import bake
from .target import check_target
from .weighted import WeightedFile

HELP = "write a checkpoint with deltas baked in"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare BASE, OUT and the deltas, each with its strength."""
    parser.add_argument("base", metavar="BASE", help="a checkpoint or diffusion model, a .safetensors file")
    parser.add_argument("target", metavar="OUT", help="the new file")
    parser.add_argument(
        "deltas", metavar="DELTA[=STRENGTH]", nargs="+", type=WeightedFile.parse, help="strength: default 1"
    )


def run(arguments: argparse.Namespace) -> str:
    """Bake; several deltas are added up first, so that each weight is rounded once. Returns a line on it."""
    check_target(arguments.target)
    deltas, strengths = [file.load() for file in arguments.deltas], [file.weight for file in arguments.deltas]
    delta, strength = deltas[0], strengths[0]
    if len(deltas) > 1:
        names = [file.path.stem for file in arguments.deltas]
        delta, strength = merge_with_report(deltas, strengths, MergeSettings(), names)[0], 1.0
    report = bake(arguments.base, arguments.target, delta, strength)
    return f"Baked {delta.nnz:,} changes into {arguments.target}. {report.text()}".rstrip()
