"""Deltas and trainings in real WebUIs: what has to hold of the model's bits, asked of the whole WebUI over HTTP.

    python dev.py bench webui_training [--rounds N] [--only NAME] [--json FILE]

A WebUI is started where A1111_DIR and A1111_PYTHON name a prepared checkout of AUTOMATIC1111's and its interpreter,
FORGE_DIR and FORGE_PYTHON Forge's, NEO_DIR and NEO_PYTHON Forge Neo's, SDNEXT_DIR and SDNEXT_PYTHON SD.Next's: on the
CPU in fp32, with a UNet of SD1.5's form with one level and random weights, CLIP-L and the VAE (in SD.Next, whose
checkpoints are folders of diffusers', a smaller one). Each round is a start of its own, in which a delta is applied and
taken off, in each pass of hires, batches and img2img too, and trainings are finished, stopped by hand, interrupted by
the WebUI's own means, resumed, and refused.
After each, the digest of all tensors of UNet, text encoder and VAE is to be the first one. A table has each claim and
in how many of the rounds it held. What was left out is said.
"""

import argparse
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.lib.random_unet import unet_file
from benchmarks.lib.report import check_json_option, machine, reported, text_table
from benchmarks.webui_.server import KINDS, Kind
from benchmarks.webui_training_.round import CLAIMS, round_in
from devtools.progress import Progress

LAYOUT = "one level"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench webui_training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="of each WebUI (default: %(default)s)")
    parser.add_argument("--only", choices=[kind.name for kind in KINDS], help="one WebUI of those that there are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every answer to FILE")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("at least 1 round is needed")
    check_json_option(parser, arguments.json)
    wanted = [kind for kind in KINDS if arguments.only in (None, kind.name)]
    if not any(kind.checkout for kind in wanted):
        print(f"error: {' and '.join(f'{kind.variable}_DIR' for kind in wanted)} name no checkout.", file=sys.stderr)
        return 1
    report = reported(lambda: run(wanted, arguments.rounds, Progress()), text, arguments.json)
    return 0 if report and report["all hold"] else 1


def run(kinds: list[Kind], rounds: int, progress: Progress) -> dict:
    """Host → what ran there, and for each round each claim with what is wrong, or None."""
    unet, hosts = unet_file(LAYOUT, progress), {}
    for kind in kinds:
        if kind.checkout is None:
            continue
        hosts[kind.name] = {"rounds": []}
        for number in range(1, rounds + 1):
            with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
                progress.say(f"{kind.name}, round {number}")
                found, about = round_in(kind, Path(folder), unet, LAYOUT, progress)
            hosts[kind.name].update(about)
            hosts[kind.name]["rounds"].append(found)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "hosts": hosts,
        "skipped": [f"{kind.name}: {kind.variable}_DIR is not set" for kind in kinds if kind.checkout is None],
        "all hold": all(
            wrong is None for host in hosts.values() for found in host["rounds"] for wrong in found.values()
        ),
    }


def text(report: dict) -> list[str]:
    """A row for each claim with the rounds in which it held; then what was wrong where it did not."""
    hosts, wrong = report["hosts"], []
    rows = []
    for claim, sentence in CLAIMS.items():
        cells = []
        for name, host in hosts.items():
            answers = [found[claim] for found in host["rounds"]]
            held = sum(answer is None for answer in answers)
            cells.append(f"{held} of {len(answers)}" if held == len(answers) else f"{held} OF {len(answers)}")
            wrong += [f"{name}, {sentence}: {answer}" for answer in answers if answer is not None]
        rows.append([sentence, *cells])
    ran = [f"{name}: torch {host['torch']}." for name, host in hosts.items()]
    skipped = [f"Skipped: {line}." for line in report["skipped"]]
    return ["", *text_table(["", *hosts], rows), "", *ran, *skipped, *wrong]


if __name__ == "__main__":
    sys.exit(main())
