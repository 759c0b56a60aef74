"""One delta in every host: its weights, by the delta's names, as one hash for each host, precision and strength.

    python dev.py bench hosts [--json FILE]

A UNet of SD1.5's form with one level and random weights, and a delta of 2 % of all its parameters, in fp32 and fp16, at
strengths 1 and 0.8. ComfyUI and diffusers are those of the tests. A WebUI is started where A1111_DIR and A1111_PYTHON
name a prepared checkout of AUTOMATIC1111's and its interpreter, FORGE_DIR and FORGE_PYTHON Forge's, NEO_DIR and
NEO_PYTHON Forge Neo's; it is asked over its API, and once more when the tags are gone. A row has one hash if all hosts
agree. A second table has what becomes of two deltas whose positions overlap, which hosts add up in different orders.
What was left out is said.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import safetensors.torch
import torch

from benchmarks.apply_.files import random_entries
from benchmarks.hosts_ import in_webui
from benchmarks.lib.process import measured, run_module
from benchmarks.lib.random_unet import unet_file
from benchmarks.lib.report import check_json_option, machine, reported, text_table
from benchmarks.webui_.server import ONE_FILE
from devtools.progress import Progress
from sara_core.delta import SparseDelta
from sara_core.delta import metadata as keys

LAYOUT, DENSITY, CHANGE = "one level", 0.02, 0.05
DTYPES = ("float32", "float16")
PREFIX = "diffusion_model."
FIRST, SECOND = "first", "second"
# Case → deltas with their strengths.
CASES = {"strength 1": [(FIRST, 1.0)], "strength 0.8": [(FIRST, 0.8)], "two deltas": [(FIRST, 1.0), (SECOND, 0.5)]}
BOTH = "two deltas"
# How two of them may be added up; of two that give the same bits, the first one is said.
ORDERS = (
    "the deltas first, rounded once", "one after the other in fp32, rounded once",
    "one after the other, rounded each time",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench hosts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every hash to FILE")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    report = reported(lambda: run(Progress()), text, arguments.json)
    return 0 if report and report["one hash each"] else 1


def run(progress: Progress) -> dict:
    """The hashes of every host that there is, and whether each case has one."""
    unet = unet_file(LAYOUT, progress)
    hosts: dict[str, dict] = {}
    orders: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        base = Path(folder)
        deltas = write_deltas(unet, base / "models" / "sara")
        for dtype in DTYPES:
            _add(hosts, "sara_core", dtype, by_the_library(unet, deltas, dtype), {})
            orders[dtype] = {order: hash_of(found, deltas) for order, found in added_up(unet, deltas, dtype)}
            for host, answer in answers(unet, base, deltas, dtype, progress):
                found = {case: hash_of(safetensors.torch.load_file(file), deltas)
                         for case, file in answer.pop("files").items()}  # fmt: skip
                _add(hosts, host, dtype, found, answer)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "hosts": hosts,
        "skipped": [f"{kind.name}: {kind.variable}_DIR is not set" for kind in ONE_FILE if kind.checkout is None],
        "orders": orders,
        "one hash each": all(
            len(set(of_case.values())) == 1 for (_, case), of_case in by_case(hosts).items() if case != BOTH
        ),
    }


def answers(unet: Path, base: Path, deltas: list[Path], dtype: str, progress: Progress):
    """Host → what it answers, with a file for each case, one host after the other."""
    progress.say(f"ComfyUI, {dtype}")
    link = base / "models" / "diffusion_models" / unet.name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(unet)
    yield "ComfyUI", measured("benchmarks.hosts_.in_comfyui", [str(base), unet.name, dtype, json.dumps(CASES)])
    progress.say(f"diffusers, {dtype}")
    yield "diffusers", measured("benchmarks.hosts_.in_diffusers", [str(base), str(unet), dtype, json.dumps(CASES)])
    kinds = [kind for kind in ONE_FILE if kind.checkout is not None]
    if kinds:
        checkpoint = base / f"checkpoint-{dtype}.safetensors"
        run_module("benchmarks.webui_.checkpoint", [str(unet), dtype, str(checkpoint)])
    for kind in kinds:
        progress.say(f"{kind.name}, {dtype}")
        folder = base / f"{kind.variable}-{dtype}"
        folder.mkdir()
        yield kind.name, in_webui.weights(kind, folder, checkpoint, deltas, LAYOUT, dtype, CASES)
    if kinds:
        os.remove(checkpoint)


def write_deltas(unet: Path, folder: Path) -> list[Path]:
    """Two deltas of all the UNet's parameters, whose positions overlap."""
    folder.mkdir(parents=True)
    shapes = {PREFIX + name: weight.shape for name, weight in safetensors.torch.load_file(unet).items()}
    elements = int(DENSITY * sum(shape.numel() for shape in shapes.values()))
    paths = []
    for seed, name in enumerate((FIRST, SECOND)):
        entries = random_entries(shapes, elements, torch.Generator().manual_seed(seed))
        entries = {name: entry._replace(values=entry.values * CHANGE / 1e-3) for name, entry in entries.items()}
        paths.append(folder / f"{name}.safetensors")
        SparseDelta(entries, {keys.FAMILY: "SD1.5"}).save(paths[-1])
    return paths


def by_the_library(unet: Path, deltas: list[Path], dtype: str) -> dict[str, str]:
    """Case of a single delta → the hash of what SparseDelta.apply_ makes; and that of the checkpoint."""
    base, first = base_weights(unet, dtype), SparseDelta.load(deltas[0])
    found = {in_webui.WITHOUT: hash_of(base, deltas)}
    for case, ((_, strength), *others) in CASES.items():
        if not others:
            weights = copied(base)
            first.apply_(weights, strength)
            found[case] = hash_of(weights, deltas)
    return found


def added_up(unet: Path, deltas: list[Path], dtype: str):
    """Each of ORDERS, with the weights under both deltas that it gives."""
    base = base_weights(unet, dtype)
    parts = [SparseDelta.load(path) * strength for path, (_, strength) in zip(deltas, CASES[BOTH], strict=True)]
    together, in_fp32, each = copied(base), {name: weight.float() for name, weight in base.items()}, copied(base)
    (parts[0] + parts[1]).apply_(together)
    for part in parts:
        part.apply_(in_fp32)
        part.apply_(each)
    yield ORDERS[0], together
    yield ORDERS[1], {name: weight.to(base[name].dtype) for name, weight in in_fp32.items()}
    yield ORDERS[2], each


def base_weights(unet: Path, dtype: str) -> dict[str, torch.Tensor]:
    """The checkpoint's weights by the names that deltas have."""
    stored = safetensors.torch.load_file(unet)
    return {PREFIX + name: weight.to(getattr(torch, dtype)) for name, weight in stored.items()}


def copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values, in memory of their own."""
    return {name: weight.clone() for name, weight in weights.items()}


def hash_of(weights: dict[str, torch.Tensor], deltas: list[Path]) -> str:
    """SHA-256 of the weights that the first delta names, in the order of their names, with their dtypes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(SparseDelta.load(deltas[0]).entries):
        weight = weights[name].detach().contiguous().reshape(-1)
        digest.update(f"{name} {weight.dtype}".encode() + weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def by_case(hosts: dict) -> dict[tuple[str, str], dict[str, str]]:
    """(dtype, case) → host → hash."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for host, about in hosts.items():
        for dtype, hashes in about["hashes"].items():
            for case, digest in hashes.items():
                found.setdefault((dtype, case), {})[host] = digest
    return found


def _add(hosts: dict, host: str, dtype: str, hashes: dict[str, str], about: dict) -> None:
    hosts.setdefault(host, {"hashes": {}}).update(about)
    hosts[host]["hashes"][dtype] = hashes


def text(report: dict) -> list[str]:
    """A row for each case of a single delta and a column for each host; then how each host adds up two."""
    hosts, rows, orders = list(report["hosts"]), [], []
    for (dtype, case), of_case in by_case(report["hosts"]).items():
        if case == BOTH:
            known = {digest: order for order, digest in reversed(report["orders"][dtype].items())}
            orders += [f"{dtype}, {host}: {known.get(digest, 'otherwise')}" for host, digest in of_case.items()]
        else:
            same = "one" if len(set(of_case.values())) == 1 else "DIFFER"
            rows.append([f"{dtype}, {case}", *(of_case.get(host, "-") for host in hosts), same])
    skipped = [f"Skipped: {line}." for line in report["skipped"]]
    return ["", *text_table(["", *hosts, "hashes"], rows), "", "Two deltas are added up:", *orders, "", *skipped]


if __name__ == "__main__":
    sys.exit(main())
