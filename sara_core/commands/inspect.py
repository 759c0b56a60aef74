"""python -m sara_core inspect FILE [--json]"""

import argparse
import json
from pathlib import Path

from ..delta import SparseDelta
from ..inspection import describe

HELP = "say what a delta file is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a delta, a .safetensors file")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> str:
    """Describe the file, in text or as JSON."""
    facts = describe(SparseDelta.load(arguments.file))
    size = arguments.file.stat().st_size
    if arguments.json:
        return json.dumps({"file": arguments.file.name, "bytes": size, **facts.as_dict()}, indent=2, ensure_ascii=False)
    return f"{arguments.file.name}, {size:,} bytes\n{facts.text()}"
