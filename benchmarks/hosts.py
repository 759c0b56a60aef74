"""One delta in every host: its weights, by the delta's names, as one hash for each host, precision and strength.

    python dev.py bench hosts [--json FILE]

A UNet of SD1.5's form with one level and random weights, and a delta of 2 % of all its parameters, in fp32 and fp16, at
strengths 1 and 0.8, and beside a second delta. ComfyUI and diffusers are those of the tests. A WebUI is started where
A1111_DIR and A1111_PYTHON name a prepared checkout of AUTOMATIC1111's and its interpreter, NEO_DIR and NEO_PYTHON Forge
Neo's; it is asked over its API. Every hash of a column should be the same one, and that of the weights without a delta
that of the checkpoint; what was left out is said.
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
from benchmarks.lib.report import check_json_option, machine, text_table
from benchmarks.webui_.server import A1111, NEO
from devtools.comfyui.install import HostError
from devtools.progress import Progress
from sara_core.delta import SparseDelta
from sara_core.delta import metadata as keys

LAYOUT, DENSITY, CHANGE = "one level", 0.02, 0.05
DTYPES = ("float32", "float16")
STRENGTHS = ("1.0", "0.8")
BOTH = "both"  # the second delta at strength 0.5, too
WITHOUT = ""
DELTA, SECOND = "first", "second"
PREFIX = "diffusion_model."


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench hosts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every hash to FILE")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    try:
        report = run(Progress())
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(text(report)))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if report["one hash each"] else 1


def run(progress: Progress) -> dict:
    """The hashes of every host that there is, and whether each case has one."""
    unet = unet_file(LAYOUT, progress)
    hosts: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        base = Path(folder)
        deltas = write_deltas(unet, base / "models" / "sara")
        for dtype in DTYPES:
            expected = applied(unet, deltas, dtype)
            _add(hosts, "sara_core", dtype, {case: hash_of(found, deltas) for case, found in expected.items()}, {})
            for host, answer in answers(unet, base, deltas, dtype, progress):
                found = {case: hash_of(safetensors.torch.load_file(file), deltas)
                         for case, file in answer.pop("files").items()}  # fmt: skip
                _add(hosts, host, dtype, found, answer)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "hosts": hosts,
        "skipped": [f"{kind.name}: {kind.variable}_DIR is not set" for kind in (A1111, NEO) if kind.checkout is None],
        "one hash each": all(len(set(of_case.values())) == 1 for of_case in by_case(hosts).values()),
    }


def answers(unet: Path, base: Path, deltas: list[Path], dtype: str, progress: Progress):
    """Host → what it answers, with a file for each case, one host after the other."""
    progress.say(f"ComfyUI, {dtype}")
    link = base / "models" / "diffusion_models" / unet.name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(unet)
    yield "ComfyUI", measured("benchmarks.hosts_.in_comfyui", [str(base), unet.name, deltas[0].name, dtype, *STRENGTHS])
    progress.say(f"diffusers, {dtype}")
    given = [str(base), str(unet), str(deltas[0]), dtype, *STRENGTHS]
    yield "diffusers", measured("benchmarks.hosts_.in_diffusers", given)
    kinds = [kind for kind in (A1111, NEO) if kind.checkout is not None]
    if kinds:
        checkpoint = base / f"checkpoint-{dtype}.safetensors"
        run_module("benchmarks.webui_.checkpoint", [str(unet), dtype, str(checkpoint)])
    prompts = {strength: f"a cat <sara:{DELTA}:{strength}>" for strength in STRENGTHS}
    prompts[BOTH] = f"{prompts['1.0']} <sara:{SECOND}:0.5>"
    for kind in kinds:
        progress.say(f"{kind.name}, {dtype}")
        folder = base / f"{kind.variable}-{dtype}"
        folder.mkdir()
        yield kind.name, in_webui.weights(kind, folder, checkpoint, deltas, LAYOUT, dtype, prompts)
    if kinds:
        os.remove(checkpoint)


def write_deltas(unet: Path, folder: Path) -> list[Path]:
    """Two deltas of all the UNet's parameters, whose positions overlap."""
    folder.mkdir(parents=True)
    shapes = {PREFIX + name: weight.shape for name, weight in safetensors.torch.load_file(unet).items()}
    elements = int(DENSITY * sum(shape.numel() for shape in shapes.values()))
    paths = []
    for seed, name in enumerate((DELTA, SECOND)):
        entries = random_entries(shapes, elements, torch.Generator().manual_seed(seed))
        entries = {name: entry._replace(values=entry.values * CHANGE / 1e-3) for name, entry in entries.items()}
        paths.append(folder / f"{name}.safetensors")
        SparseDelta(entries, {keys.FAMILY: "SD1.5"}).save(paths[-1])
    return paths


def applied(unet: Path, deltas: list[Path], dtype: str) -> dict[str, dict[str, torch.Tensor]]:
    """Case → the weights as the library itself makes them."""
    stored = safetensors.torch.load_file(unet)
    base = {PREFIX + name: weight.to(getattr(torch, dtype)) for name, weight in stored.items()}
    first, second = map(SparseDelta.load, deltas)
    cases = {strength: first * float(strength) for strength in STRENGTHS}
    cases[BOTH] = first + second * 0.5
    found = {WITHOUT: base}
    for case, delta in cases.items():
        found[case] = {name: weight.clone() for name, weight in base.items()}
        delta.apply_(found[case])
    return found


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
    """A row for each case, a column for each host."""
    hosts = list(report["hosts"])
    names = {WITHOUT: "without a delta", BOTH: "with a second one at 0.5"}
    rows = []
    for (dtype, case), of_case in by_case(report["hosts"]).items():
        same = "one" if len(set(of_case.values())) == 1 else "DIFFER"
        title = f"{dtype}, {names.get(case, f'strength {case}')}"
        rows.append([title, *(of_case.get(host, "-") for host in hosts), same])
    return ["", *text_table(["", *hosts, "hashes"], rows), "", *(f"Skipped: {line}." for line in report["skipped"])]


if __name__ == "__main__":
    sys.exit(main())
