"""python -m sara_core convert IN OUT [--base BASE] [--to sara|diff|lora|shira] [--rank R] [--density D]"""

import argparse

from ..conversion import read as convert
from ..conversion import write as export

HELP = "make a delta of a foreign file, or write a delta in another format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="IN",
        help="a delta; the SaRA authors' .pt; SHiRA, Super-Tuning or LT-SFT; a LoRA, LyCORIS or .diff file; or a model",
    )
    parser.add_argument("target", metavar="OUT", help="a .safetensors file; with --to shira a folder")
    parser.add_argument("--base", help="the model that IN was made for: a diffusers folder or a .safetensors file")
    parser.add_argument("--to", choices=export.FORMATS, default="sara", help="what to write (default: %(default)s)")
    parser.add_argument(
        "--rank", type=int, default=export.DEFAULT_RANK, help="of the LoRA, with --to lora (default: %(default)s)"
    )
    parser.add_argument(
        "--density", type=float, help="share of the model's elements to keep of a LoRA or model, such as 0.05"
    )


def run(arguments: argparse.Namespace) -> str:
    """Convert; returns the report."""
    conversion = convert.read(arguments.source, arguments.base, arguments.density)
    written = export.write(conversion.delta, arguments.target, arguments.to, arguments.base, arguments.rank)
    return f"{conversion.text()}\n{written}"
