"""python -m sara_core inspect FILE [--base BASE] [--json]"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ..delta import SparseDelta
from ..delta.describe import describe
from ..foreign_text import NAME, escaped_json, plain
from ..models import identity as base_identity
from ..models.base import opened_base
from .remedies import load_delta

HELP = "say what a delta file is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare FILE, and how and beside what it is described."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a delta, a .safetensors file")
    parser.add_argument(
        "--base", metavar="BASE", type=Path,
        help="say whether this model is the one the delta was trained on: a .safetensors file or a diffusers folder",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> str:
    """Describe the file, in text or as JSON."""
    delta = load_delta(arguments.file)
    facts, size = describe(delta), arguments.file.stat().st_size
    verdict = None if arguments.base is None else _verdict(delta, arguments.base)
    if arguments.json:
        content = {"file": arguments.file.name, "bytes": size, **facts.as_dict()}
        if verdict is not None:
            content["model"] = {"file": arguments.base.name, **asdict(verdict)}
        return escaped_json(json.dumps(content, indent=2, ensure_ascii=False))
    text = f"{plain(arguments.file.name, NAME)}, {size:,} bytes\n{facts.text()}"
    return text if verdict is None else f"{text}\n\n{plain(arguments.base.name, NAME)}: {verdict.text()}"


def _verdict(delta: SparseDelta, path: Path) -> base_identity.Verdict:
    with opened_base(path, as_stored=True) as base:
        return base_identity.compare(delta.metadata, base.weights())
