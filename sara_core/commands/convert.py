"""python -m sara_core convert IN OUT [--base BASE] [--to FORMAT] [--rank R] [--density D]
[--reading trained|comfyui] [--for READER]"""

import argparse

from ..conversion.adapters.readings import READINGS, TRAINED
from ..conversion.dense.programs import COMFYUI, PROGRAMS
from ..conversion.read import read_delta
from ..conversion.registry import OWN, WRITERS, format_names
from ..conversion.request import DEFAULT_RANK
from ..conversion.write import write_delta
from .options import number
from .remedies import REMEDIES
from .target import check_target

HELP = "make a delta of a foreign file, or write a delta in another format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare IN, OUT and what a format may need to be read or written."""
    folders = " or ".join(name for name, writer in WRITERS.items() if not writer.ending)
    written = "; ".join(f"{name}: {writer.summary}" for name, writer in WRITERS.items())
    parser.add_argument(
        "source",
        metavar="IN",
        help="a file or folder, recognised by its content: a model, the SaRA authors' .pt, or one of "
        + ", ".join(format_names()),
    )
    parser.add_argument("target", metavar="OUT", help=f"a file; with --to {folders} a folder")
    parser.add_argument("--base", help="the model that IN was made for: a diffusers folder or a .safetensors file")
    parser.add_argument("--to", choices=list(WRITERS), default=OWN, help=f"{written} (default: %(default)s)")
    parser.add_argument(
        "--rank", type=number(1, 1 << 16, whole=True), default=DEFAULT_RANK,
        help="of the LoRA, with --to lora (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--for", dest="reader", choices=list(PROGRAMS), default=COMFYUI, help="the program that is to load the LoRA, "
        "with --to lora: it gets that program's names, and what it does not take is left out (default: %(default)s)"
    )  # fmt: skip
    parser.add_argument(
        "--density", type=number(above=0, most=1),
        help="share of the model's elements to keep of a LoRA or model, such as 0.05",
    )  # fmt: skip
    parser.add_argument(
        "--reading",
        choices=list(READINGS),
        default=TRAINED,
        help="of the few kinds of adapters that ComfyUI shows otherwise than they were trained: as they were trained, "
        "or as it shows them (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> str:
    """Convert; returns the report."""
    ending = WRITERS[arguments.to].ending
    check_target(arguments.target, ending, is_folder=not ending)
    conversion = read_delta(
        arguments.source, arguments.base, arguments.density, remedies=REMEDIES, reading=arguments.reading
    )
    written = write_delta(
        conversion.delta, arguments.target, arguments.to, arguments.base, arguments.rank, reader=arguments.reader
    )
    return f"{conversion.text()}\n{written}"
