"""python -m sara_core report [FILE]"""

import argparse
from pathlib import Path

from ..report.report import report

HELP = "what to paste into an issue: versions, machine, a delta's settings, and no private name or path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare FILE, which may be left out."""
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="a delta that the problem is about")


def run(arguments: argparse.Namespace) -> str:
    """The report, as Markdown."""
    return report(delta=arguments.file)
