"""python -m sara_core extract BASE TUNED OUT [--density D | --count N | --support DELTA]"""

import argparse
import math

from ..delta import SparseDelta
from ..delta.file_v1 import SUFFIX, VALUE_BYTES
from ..extraction.extract import extract_with_report
from ..files.disk import check_room
from ..models.base import opened_base
from .options import number
from .remedies import load_delta
from .target import check_target

HELP = "make a delta of a tuned model and its base"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare BASE, TUNED, OUT and the rules for what is kept, of which one may be given."""
    parser.add_argument("base", metavar="BASE", help="a .safetensors file or a diffusers folder")
    parser.add_argument("tuned", metavar="TUNED", help="the same, of the model that was tuned from it")
    parser.add_argument("target", metavar="OUT", help="the delta, a .safetensors file")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--density", type=number(above=0, most=1),
        help="keep the largest changes, this share of the model, such as 0.01",
    )  # fmt: skip
    amount.add_argument("--count", type=number(1, whole=True), help="keep the largest changes, this many")
    amount.add_argument("--support", metavar="DELTA", help="keep exactly the positions of this delta file")


def run(arguments: argparse.Namespace) -> str:
    """Extract and save; returns the report."""
    check_target(arguments.target, SUFFIX)
    support = None if arguments.support is None else load_delta(arguments.support)
    check_room(arguments.target, VALUE_BYTES * _elements(arguments, support), "The delta")
    delta, report = extract_with_report(
        arguments.base, arguments.tuned, density=arguments.density, count=arguments.count, support=support
    )
    delta.save(arguments.target)
    return report.text()


def _elements(arguments: argparse.Namespace, support: SparseDelta | None) -> int:
    """How many elements are kept, if so many have changed; 0 where nothing says so before the models are compared."""
    if support is not None:
        return support.nnz
    if arguments.density is None:
        return arguments.count or 0
    with opened_base(arguments.base) as base:
        return math.ceil(arguments.density * base.elements)
