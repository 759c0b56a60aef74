"""What the programs that files are written for make of them: every format, family and program, with the real readers.

    python dev.py bench readers [--json FILE]

ComfyUI's, diffusers' and PEFT's functions run here; InvokeAI's, and LyCORIS' for kohya's files, in environments of
their own in the cache, which the first run downloads. Models are small and random, and the delta of each changes
something in everything that it has, of some families a second one also in their text encoders. What arrives in the
reader's model is compared with the delta, layer by layer.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.lib.report import check_json_option, machine, machine_text
from benchmarks.readers_ import in_comfyui, in_diffusers, in_peft
from benchmarks.readers_.cases import (
    FAMILIES_TRIED, RANK, WITH_TEXT, Case, in_diffusers_names, judged, make_case, read_changes,
)  # fmt: skip
from benchmarks.readers_.environments import ENVIRONMENTS, prepare as prepare_reader
from benchmarks.readers_.tables import markdown
from devtools.comfyui.install import DEFAULT_VERSION, ROOT, prepare
from sara_core.conversion.write import write_delta
from sara_core.errors import DeltaError

# Program, format; the last two are what a program makes of a file that was not written for it.
TRIED = (
    ("comfyui", "lora"), ("comfyui", "diff"), ("diffusers", "lora"), ("invokeai", "lora"), ("kohya", "lora"),
    ("peft", "shira"), ("diffusers", "diff"), ("invokeai", "diff"),
)  # fmt: skip
HERE: dict[str, Callable[[Case, Path], dict[str, torch.Tensor]]] = {
    "comfyui": in_comfyui.changes_in, "diffusers": in_diffusers.changes_in, "peft": in_peft.changes_in,
}  # fmt: skip
# InvokeAI tells these by the width of a real model's layers: how many times as wide as the small one's they are.
REAL_WIDTH = {"Flux": 24, "Flux.2": 48}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench readers", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result to FILE")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    sys.path.insert(0, str(prepare().folder))
    interpreters = {reader: prepare_reader(reader) for reader in ENVIRONMENTS}
    from comfy.cli_args import args

    args.cpu = True
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-readers-") as folder:
        results = measure(Path(folder), interpreters)
    packages = ("torch", "diffusers", "peft")
    pinned = dict(environment.packages[0].split("==") for environment in ENVIRONMENTS.values())
    report = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "about": machine(),
        "versions": {
            "Python": platform.python_version(), "ComfyUI": DEFAULT_VERSION,
            **{name: version(name) for name in packages}, **pinned,
        },
        "results": results,
    }  # fmt: skip
    print("\n".join([*markdown(report), "", machine_text(report["about"], report["versions"])]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(result["outcome"] == "wrong" for result in results) else 0


def measure(folder: Path, interpreters: dict[str, Path]) -> list[dict]:
    """One result for each family and each of TRIED: program, format, family; `outcome`: "arrived", "refused" by us, the
    reader's "error", or "wrong"; for what arrived what `judged` says, and how many things are left out for each reason.
    """
    results, jobs = [], {reader: [] for reader in interpreters}
    for family in (*FAMILIES_TRIED, *WITH_TEXT):
        home = folder / family
        case = make_case(family, home)
        case.save(home)
        for reader, to in TRIED:
            path = home / f"{reader} {to}{'' if to == 'shira' else '.safetensors'}"
            result = {"family": family, "reader": reader, "format": to}
            results.append(result)
            try:
                report = written(case, reader, to, path)
            except DeltaError as error:
                result |= {"outcome": "refused", "said": str(error)}
                continue
            if reader in HERE:
                try:
                    finish(result, case, HERE[reader](case, path), report)
                except Exception as error:  # whatever a reader raises is its answer
                    result |= {"outcome": "error", "said": f"{type(error).__name__}: {error}"[:300]}
            else:
                jobs[reader].append((result, case, report, job(case, reader, to, path)))
    for reader, of_reader in jobs.items():
        run(reader, interpreters[reader], [one for *_, one in of_reader], folder)
        for result, case, report, one in of_reader:
            said = read_changes(Path(one["to"]))
            if "error" in said:
                result |= {"outcome": "error", "said": said["error"]}
            else:
                finish(result, case, said["changes"], report)
    return results


def written(case: Case, reader: str, to: str, path: Path) -> str:
    for_whom = {"reader": reader} if to == "lora" else {}
    return write_delta(case.delta, path, to, rank=RANK, **for_whom)


def finish(result: dict, case: Case, changes: dict[str, torch.Tensor], report: str) -> None:
    reader, to = result["reader"], result["format"]
    # A pipeline's model has diffusers' names, whatever the file has.
    theirs = reader in ("diffusers", "peft") or reader != "comfyui" and in_diffusers_names(reader, case.family)
    result |= judged(case.changes if theirs else case.comfyui_changes, changes, report)
    result["left_out"] = [line.split(": ")[0] for line in report.splitlines() if line.startswith("Left out")]
    is_ours = reader == "comfyui" or to != "diff"
    result["outcome"] = ("wrong" if is_ours else "ignored") if result["wrong"] else "arrived"


def job(case: Case, reader: str, to: str, path: Path) -> dict:
    """What a reader in its own environment needs to know."""
    home = path.parent
    if reader == "kohya":
        weights = home / "weights.safetensors"
        theirs = in_diffusers_names(reader, case.family)
        save_file(
            {
                name: weight.contiguous()
                for name, weight in (case.model.state_dict() if theirs else case.comfyui).items()
            },
            weights,
        )
        return {
            "family": case.family, "weights": str(weights), "text": str(home / "text.safetensors"), "lora": str(path),
            "to": f"{path}.changes.safetensors",
        }  # fmt: skip
    recognised = path
    if to == "lora":
        recognised = path.with_suffix(".real.safetensors")
        save_file(as_wide_as_real(load_file(path), REAL_WIDTH.get(case.family, 1)), recognised)
    return {
        "family": case.family, "model": str(home / "diffusers"), "comfyui": str(home / "comfyui.safetensors"),
        "text": {encoder: str(home / encoder) for encoder in case.encoders},
        "lora": str(path), "recognised": str(recognised), "to": f"{path}.changes.safetensors",
    }  # fmt: skip


def as_wide_as_real(tensors: dict[str, torch.Tensor], times: int) -> dict[str, torch.Tensor]:
    """The same factors for a model so many times as wide; zeros, for only their sizes are looked at."""
    wide = {}
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        if shape:
            shape[0 if "lora_B" in name or "lora_up" in name else 1] *= times
        wide[name] = torch.zeros(shape, dtype=tensor.dtype)
    return wide


def run(reader: str, python: Path, jobs: list[dict], folder: Path) -> None:
    path = folder / f"{reader}.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    command = [str(python), "-m", f"benchmarks.readers_.{ENVIRONMENTS[reader].module}", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{reader} ended with {done.returncode}:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
