"""Memory and speed of training in ComfyUI: SaRA Train beside core's Train LoRA, on a UNet of SD1.5's size.

    python dev.py bench train [--steps N] [--rounds N] [--small] [--json FILE]

An SD1.5 UNet with random weights, fp32, one 32×32 latent per step; 5 M trained elements against LoRAs of rank 8, each
with and without gradient checkpointing, each in its own process, in turns. The UNet's file is kept in the cache.
Growth is the peak of the whole process while training, less the loaded model; the later growth leaves the first step
out, in which Train LoRA loads its own copy of the model. A step's time is the median without the first.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._random_unet import LAYOUTS, SEED, STANDARD_DEVIATION
from devtools.host import ROOT, HostError, cache_root
from devtools.locking import locked
from devtools.progress import Progress

# Other programs' use of the processor above which the times are called unreliable.
BUSY_CORES = 0.15
METHODS = ("SaRA", "LoRA bypass", "LoRA default")
CHECKPOINTING = (True, False)
TRAINED = {"sd15": 5_000_000, "small": 92_000}
UNET_BYTES = {"sd15": 3_500_000_000, "small": 70_000_000}
# Name of a ratio → the most it should be. A ratio is our figure divided by theirs.
TARGETS = {"growth / LoRA default": 0.12, "growth / LoRA bypass": 0.25, "step / faster LoRA": 1.0}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench train", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="steps of each run, the first not timed (default: 3)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each method (default: 1)")
    parser.add_argument("--small", action="store_true", help="a UNet of 16 M parameters: only to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    arguments = parser.parse_args()
    if arguments.steps < 2 or arguments.rounds < 1:
        parser.error("at least 2 steps and 1 round are needed")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"the folder of {arguments.json} does not exist")
    layout = "small" if arguments.small else "sd15"
    progress = Progress()
    try:
        unet = unet_file(layout, progress)
        measurements = run_all(unet, arguments.steps, arguments.rounds, TRAINED[layout], progress)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = summarise(measurements)
    report = {
        "machine": machine(),
        "versions": measurements[0]["versions"],
        "settings": {"layout": layout, "steps": arguments.steps, "rounds": arguments.rounds},
        "targets": {} if arguments.small else TARGETS,  # on a small model, what any training needs hides the rest
        "ratios": ratios(summary),
        "summary": summary,
        "measurements": measurements,
    }
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def unet_file(layout: str, progress: Progress) -> Path:
    """The UNet's file, written by the first run of this benchmark."""
    recipe = json.dumps([LAYOUTS[layout], SEED, STANDARD_DEVIATION])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    path = cache_root() / "bench" / f"random-{layout}-{digest}.safetensors"
    with locked(cache_root() / "bench.lock", lambda: progress.update("waiting for another process")):
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < UNET_BYTES[layout]:
            raise HostError(
                f"{path.parent} needs {UNET_BYTES[layout] / 1e9:.1f} GB for a random UNet, and its disk has "
                f"{free / 1e9:.1f} GB free. Free some space, or set SARA_CACHE to a folder on a larger disk."
            )
        progress.say(f"writing a random UNet to {path} (kept for the next time)")
        unfinished = path.with_suffix(".unfinished")
        run_module("benchmarks._random_unet", [layout, str(unfinished)])
        os.replace(unfinished, path)
    return path


def run_all(unet: Path, steps: int, rounds: int, trained: int, progress: Progress) -> list[dict]:
    """Every method with and without checkpointing, in turns, so that a change of the machine's load meets all."""
    measurements = []
    total = rounds * len(CHECKPOINTING) * len(METHODS)
    for _ in range(rounds):
        for checkpointing in CHECKPOINTING:
            for method in METHODS:
                label = described(method, checkpointing)
                progress.say(f"{len(measurements) + 1} of {total}: {label}")
                with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
                    result = Path(folder, "result.json")
                    options = [method, "on" if checkpointing else "off", str(steps), str(trained), str(result)]
                    run_module("benchmarks._training_run", [str(unet), *options])
                    measurements.append(json.loads(result.read_text(encoding="utf-8")))
                growth, step = measurements[-1]["growth"], statistics.median(measurements[-1]["steps"])
                progress.say(f"    growth {growth:.0f} MiB, step {step:.2f} s")
    return measurements


def run_module(module: str, arguments: list[str]) -> None:
    """Run a module of this repository in a fresh interpreter; its output is repeated only if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    if result.returncode < 0:
        raise HostError(
            f"The process of {module} was ended by signal {-result.returncode}. If that is 9, memory ran out: Train "
            "LoRA needs about 16 GB free; close other programs and try again."
        )
    if result.returncode:
        raise HostError(f"{module} failed:\n" + "\n".join(result.stderr.splitlines()[-30:]))


def summarise(measurements: list[dict]) -> list[dict]:
    """One row per method and checkpointing: medians over the rounds (steps: over all of them)."""
    rows = []
    for checkpointing in CHECKPOINTING:
        for method in METHODS:
            runs = [m for m in measurements if (m["method"], m["gradient_checkpointing"]) == (method, checkpointing)]
            row = {"method": method, "gradient_checkpointing": checkpointing}
            for field in ("trained_elements", "loaded", "peak", "growth", "later_growth", "first_step"):
                row[field] = statistics.median(run[field] for run in runs)
            row["step"] = statistics.median(step for run in runs for step in run["steps"])
            rows.append(row)
    return rows


def ratios(summary: list[dict]) -> dict[str, list[float]]:
    """Name of a ratio → our figure divided by theirs, once per setting of CHECKPOINTING."""
    found = {}
    for checkpointing in CHECKPOINTING:
        rows = {row["method"]: row for row in summary if row["gradient_checkpointing"] == checkpointing}
        ours, bypass, default = (rows[method] for method in METHODS)
        for name, ratio in {
            "growth / LoRA default": ours["growth"] / default["growth"],
            "growth / LoRA bypass": ours["growth"] / bypass["growth"],
            "later growth / LoRA default": ours["later_growth"] / default["later_growth"],
            "later growth / LoRA bypass": ours["later_growth"] / bypass["later_growth"],
            "step / faster LoRA": ours["step"] / min(bypass["step"], default["step"]),
        }.items():
            found.setdefault(name, []).append(ratio)
    return found


def machine() -> dict:
    """What the figures depend on beside the versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {"system": platform.system(), "processor": processor, "cores": os.cpu_count()}


def table(report: dict) -> str:
    first = report["measurements"][0]
    versions, about = report["versions"], report["machine"]
    lines = ["", f"{'SaRA ÷ Train LoRA (rank 8)':28} {'checkpointing':>13} {'without':>9} {'target':>8}"]
    for name, (with_checkpointing, without) in report["ratios"].items():
        target = f"≤ {report['targets'][name]:.2f}" if name in report["targets"] else ""
        lines.append(f"{name:28} {with_checkpointing:13.3f} {without:9.3f} {target:>8}")
    columns = ("trained M", "growth MiB", "later MiB", "peak MiB", "step s", "first s")
    lines += ["", f"{'method':28}" + "".join(f"{column:>11}" for column in columns)]
    for row in report["summary"]:
        lines.append(
            f"{described(row['method'], row['gradient_checkpointing']):28}{row['trained_elements'] / 1e6:11.2f}"
            f"{row['growth']:11.0f}{row['later_growth']:11.0f}{row['peak']:11.0f}"
            f"{row['step']:11.2f}{row['first_step']:11.1f}"
        )
    lines += [
        "",
        f"UNet of {first['parameters'] / 1e6:.1f} M parameters, {first['density_below_2e-4']:.2%} of its weights below "
        "2e-4; fp32, 32×32 latents, batch 1.",
        f"Loaded {first['loaded']:.0f} MiB, at most {first['loading_peak']:.0f} MiB while loading. "
        "first s: from the start to the end of the first step.",
        f"{about['processor']}, {about['cores']} cores, {about['system']}; ComfyUI {versions['ComfyUI']}, "
        f"torch {versions['torch']}, Python {versions['Python']}, {versions['threads']} threads.",
    ]
    busiest = max(measurement["cores_used_by_others"] for measurement in report["measurements"])
    if busiest > BUSY_CORES:
        lines.append(f"Other programs used up to {busiest:.1f} cores meanwhile: the times are unreliable.")
    return "\n".join(lines)


def described(method: str, checkpointing: bool) -> str:
    return method + (", checkpointing" if checkpointing else "")


if __name__ == "__main__":
    sys.exit(main())
