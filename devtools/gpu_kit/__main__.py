"""Builds a kit: a folder to copy to a GPU machine without network, with a run.sh that measures there.

    python -m devtools.gpu_kit claims FOLDER      benchmarks/claims.py, with the icons: every tier, and its parts
    python -m devtools.gpu_kit host FOLDER        benchmarks/gpu_host.py, with a ComfyUI

There: bash FOLDER/run.sh SECONDS [arguments of the measurement]. It ends by itself within SECONDS, and leaves results
in the folder that OUT names, by default FOLDER/results.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..comfyui.install import prepare
from ..prepared import HostError
from ..progress import Progress
from . import claims, host
from .kit import Kit

DEFAULT_PYTHON = "3.12"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m devtools.gpu_kit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("claims", "host"), help="what is to be measured there")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new one")
    parser.add_argument("--python", default=DEFAULT_PYTHON, metavar="VERSION", help="that machine's (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("claims-training"), help="where `bench claims` keeps icons (%(default)s)"
    )
    options = parser.parse_args(arguments)
    progress = Progress()
    try:
        kit = Kit(options.folder, progress)
        comfyui = prepare(progress=progress).folder
        if options.kind == "claims":
            claims.fill(kit, comfyui, options.python, options.work / "icons")
        else:
            host.fill(kit, comfyui, options.python)
        print(f"{options.folder}: {kit.finish() / 2**20:.1f} MiB. There: bash {options.folder.name}/run.sh SECONDS")
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
