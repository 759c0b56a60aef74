"""python -m sara_core bake BASE OUT DELTA[=STRENGTH] [DELTA[=STRENGTH] …] [--dtype bf16|fp16]"""

import argparse

from ..merging.merge import MergeSettings, merge_with_report
from ..models.bake import AS_THE_FILE, PRECISIONS, bake
from .target import check_target
from .weighted import WeightedFile

HELP = "write a checkpoint with deltas baked in"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare BASE, OUT and the deltas, each with its strength."""
    parser.add_argument("base", metavar="BASE", help="a checkpoint or diffusion model, a .safetensors or .gguf file")
    parser.add_argument("target", metavar="OUT", help="the new file")
    parser.add_argument(
        "deltas", metavar="DELTA[=STRENGTH]", nargs="+", type=WeightedFile.parse, help="strength: default 1"
    )
    parser.add_argument(
        "--dtype",
        choices=list(PRECISIONS),
        default=AS_THE_FILE,
        help="of quantised weights in OUT (default: as in BASE); .gguf files need it",
    )


def run(arguments: argparse.Namespace) -> str:
    """Bake; several deltas are added up first, so that each weight is rounded once. Returns a line on it."""
    check_target(arguments.target)
    deltas, strengths = [file.load() for file in arguments.deltas], [file.weight for file in arguments.deltas]
    delta, strength = deltas[0], strengths[0]
    if len(deltas) > 1:
        names = [file.path.stem for file in arguments.deltas]
        delta, strength = merge_with_report(deltas, strengths, MergeSettings(), names)[0], 1.0
    report = bake(arguments.base, arguments.target, delta, strength, precision=arguments.dtype)
    return f"Baked {delta.nnz:,} changes into {arguments.target}. {report.text()}".rstrip()
