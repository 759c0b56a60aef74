"""A delta in the prompt of AUTOMATIC1111's WebUI, beside the WebUI's own LoRAs: seconds, and copies of layers.

    python dev.py bench webui [--rounds N] [--json FILE]

The whole WebUI runs, from a prepared checkout that A1111_DIR names, with the interpreter A1111_PYTHON: on the CPU in
fp32, with a UNet of SD1.5's size with random weights. A delta of 5 M elements of all Linear layers and convolutions,
and LoRAs of rank 16 on the attention layers and on all layers that the WebUI can put one on. Each is applied as the
first one that the checkpoint sees, applied at another strength, and taken off, in turns. Measured is all that the
networks of a prompt take: reading the file, and putting it into every layer.
"""

import argparse
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import safetensors.torch
import torch

from benchmarks.apply_.files import CHANGE, RANK, random_entries
from benchmarks.lib.process import run_module
from benchmarks.lib.random_unet import unet_file
from benchmarks.lib.report import Spread, check_json_option, machine, reported, text_table
from benchmarks.webui_.checkpoint import write_config
from benchmarks.webui_.server import A1111, WebUI
from devtools.comfyui.install import HostError
from devtools.progress import Progress
from sara_core.delta import SparseDelta
from sara_core.delta import metadata as keys

ELEMENTS = {"sd15": 5_000_000, "one level": 150_000}
DELTA, ATTENTION, ALL = "delta", "attention", "all"
TAGS = {DELTA: "<sara:delta:{}>", ATTENTION: "<lora:attention:{}>", ALL: "<lora:all:{}>"}
# What is done → the strength of the tag; None: without one.
DONE = {"apply": 1.0, "other strength": 0.8, "undo": None}
# The delta's seconds by those of a LoRA, at most.
LIMITS = {
    ("apply", ATTENTION): 1.0, ("apply", ALL): 0.3, ("other strength", ATTENTION): 0.5, ("undo", ATTENTION): 0.5,
}  # fmt: skip
PREFIX = "model.diffusion_model."


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench webui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a UNet of 25 M parameters: only to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("at least 1 round is needed")
    check_json_option(parser, arguments.json)
    if A1111.checkout is None:
        print("error: A1111_DIR names no prepared checkout of AUTOMATIC1111's WebUI.", file=sys.stderr)
        return 1

    def measure() -> dict:
        rows = run("one level" if arguments.small else "sd15", arguments.rounds, Progress())
        return {
            "date": datetime.now(timezone.utc).date().isoformat(), "machine": machine(), "torch": rows.pop("torch"),
            "small": arguments.small, "ratios": ratios(rows["measurements"]), **rows,
        }  # fmt: skip

    return 0 if reported(measure, text, arguments.json) else 1


def run(layout: str, rounds: int, progress: Progress) -> dict:
    """Every measurement: network, what was done, seconds, and MiB of layers' copies then."""
    unet = unet_file(layout, progress)
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        webui = WebUI(A1111, Path(folder), "float32")
        models = webui.folder("Stable-diffusion")
        progress.say("writing a checkpoint, a delta and LoRAs")
        run_module("benchmarks.webui_.checkpoint", [str(unet), "float32", str(models / "random.safetensors")])
        write_config(A1111.checkout, layout, models / "random.yaml")
        write_networks(unet, ELEMENTS[layout], webui)
        progress.say("starting the WebUI")
        with webui:
            webui.draw("a cat")  # the model is loaded by then
            about = webui.get("/probe/about")
            found = []
            for number in range(rounds):
                for network, tag in TAGS.items():
                    webui.get("/probe/forget")
                    prompts = ["" if strength is None else tag.format(strength) for strength in DONE.values()]
                    answers = webui.get("/probe/time", prompts="|".join(prompts))
                    found += [_measurement(number, network, done, one) for done, one in zip(DONE, answers)]
                    progress.say("   ".join(f"{one['done']} {one['seconds']:.2f} s" for one in found[-len(DONE) :]))
        return {"measurements": found, "torch": about["torch"]}


def _measurement(number: int, network: str, done: str, answer: dict) -> dict:
    if answer["comments"]:
        raise HostError(f"{network}, {done}: {answer['comments']}")
    return {"round": number, "network": network, "done": done, "seconds": answer["seconds"],
            "copied MiB": answer["copied"] / 2**20}  # fmt: skip


def write_networks(unet: Path, elements: int, webui: WebUI) -> None:
    """The delta, and the LoRAs by the names that kohya's trainer gives them."""
    stored = safetensors.torch.load_file(unet)
    shapes = {name: weight.shape for name, weight in stored.items() if weight.dim() > 1}
    generator = torch.Generator().manual_seed(0)
    entries = random_entries(shapes, elements, generator)
    entries = {f"diffusion_model.{name}": entry for name, entry in entries.items()}
    SparseDelta(entries, {keys.FAMILY: "SD1.5"}).save(webui.folder("sara") / f"{DELTA}.safetensors")
    for name, layers in ((ATTENTION, [name for name in shapes if ".attn" in name]), (ALL, list(shapes))):
        tensors = {}
        for layer in layers:
            rows, *columns = shapes[layer]
            stem = "lora_unet_" + layer.removesuffix(".weight").replace(".", "_")
            tensors[f"{stem}.lora_up.weight"] = torch.randn(
                rows, RANK, *[1] * (len(columns) - 1), generator=generator) * CHANGE  # fmt: skip
            tensors[f"{stem}.lora_down.weight"] = torch.randn(RANK, *columns, generator=generator)
            tensors[f"{stem}.alpha"] = torch.tensor(float(RANK))
        path = webui.folder("Lora") / f"{name}.safetensors"
        safetensors.torch.save_file(tensors, path, {"ss_network_dim": str(RANK)})


def ratios(measurements: list[dict]) -> list[dict]:
    """The delta's seconds by a LoRA's of the same round: what, beside which, spread, limit (None: none)."""
    found = []
    for done in DONE:
        ours, *loras = ([one["seconds"] for one in measurements if (one["network"], one["done"]) == (network, done)]
                        for network in TAGS)  # fmt: skip
        for network, theirs in zip((ATTENTION, ALL), loras):
            spread = Spread.of(a / b for a, b in zip(ours, theirs, strict=True))
            found.append({"done": done, "beside": network, "spread": spread, "limit": LIMITS.get((done, network))})
    return found


def text(report: dict) -> list[str]:
    """Seconds and copies of each network, then the ratios."""
    rows = []
    for network in TAGS:
        own = [one for one in report["measurements"] if one["network"] == network]
        cells = [Spread.of(one["seconds"] for one in own if one["done"] == done).text(2) for done in DONE]
        rows.append([network, *cells, f"{max(one['copied MiB'] for one in own):.0f}"])
    beside = []
    for one in report["ratios"]:
        limit, spread = one["limit"], one["spread"]
        promise = ["", ""] if limit is None else [f"≤ {limit:.2f}", "yes" if spread.median <= limit else "NO"]
        beside.append([f"{one['done']}: delta / LoRA, {one['beside']}", spread.text(2), *promise])
    about = report["machine"]
    return [
        "", *text_table(["seconds", *DONE, "copies of layers, MiB"], rows),
        "", *text_table(["", "ratio", "target", "met"], beside),
        "", f"{about['processor']}, {about['cores']} cores, {about['system']}; torch {report['torch']}.",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
