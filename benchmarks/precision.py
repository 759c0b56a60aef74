"""How much of a change arrives in a quantised model in ComfyUI, and what keeping it whole costs.

    python dev.py bench precision [--part effect | speed | memory] [--device cuda] [--json FILE]

Effect: small random models of three families in every precision that people have; a delta of 1 % of the quantised
matrices through SaRA Loader and through the stock Load LoRA, and a LoRA of rank 4 and the same norm through Load LoRA.
Of what the change should add to the layers' outputs for random input: the share that arrives / the rest, as a share
of it too ("noise").

Speed: one layer of SDXL's, without a delta, and with one added to the dequantised weight or applied beside the host's
quantised product; milliseconds. On a GPU: --part speed --device cuda.

Memory (only if it is asked for: 3 GB of disk, 10 GB of memory and minutes): training a UNet of SDXL's size in fp8, at
32×32 latents, in SaRA Train and in both modes of core's Train LoRA; growth of the process over the loaded model.
"""

import argparse
import platform
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.lib.report import add_json_option, check_json_option, machine, machine_text, save, text_table
from benchmarks.precision_ import effect, memory, speed
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare

PARTS = {"effect": effect, "speed": speed, "memory": memory}
QUICK = ("effect", "speed")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help=f"one part only (default: {' and '.join(QUICK)})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the speed (default: %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    if arguments.device == "cuda" and arguments.part != "speed":
        parser.error("--device cuda is for --part speed")
    installed = prepare()
    report = {"date": datetime.now(timezone.utc).date().isoformat(), "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-precision-") as folder, torch.inference_mode():
        host = InProcessHost(installed, Path(folder), arguments.device)
        parts = [arguments.part] if arguments.part else QUICK
        for part in parts:
            report[part] = PARTS[part].measure(host, Path(folder), arguments.device)
    report["versions"] = versions()
    for part in parts:
        print("\n".join(text_table(*PARTS[part].table(report[part]))), end="\n\n")
    print(machine_text(report["machine"], report["versions"]))
    save(report, arguments.json, lambda figure: effect.draw(figure, report.get("effect", [])))
    return 0


def versions() -> dict[str, str]:
    """Of what decides the figures; ComfyUI's own is its latest release here."""
    import comfyui_version

    about = {"ComfyUI": comfyui_version.__version__, "torch": torch.__version__, "Python": platform.python_version()}
    return {**about, "comfy-kitchen": version("comfy-kitchen"), "gguf": version("gguf")}


if __name__ == "__main__":
    sys.exit(main())
