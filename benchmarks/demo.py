"""What the demo's training is worth: samples before and after, with and without the trigger, judged.

    python dev.py bench demo [--samples N] [--json FILE]

The demo's style is trained by SaRA Train in ComfyUI with the demo's settings; ComfyUI draws the samples.
"""

import argparse
import json
import platform
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.lib.report import check_json_option, machine, machine_text, text_table
from demo import evaluate, settings
from devtools.checkpoint import demo_checkpoint
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare
from devtools.style_training import StyleTraining

# What is promised of 200 samples each (README): at least and at most, as shares.
PROMISED = {
    ("base", ""): {"right": (0.90, 1), "styled": (0, 0)},
    ("base", settings.STYLE): {"styled": (0, 0.10)},
    ("trained", settings.STYLE): {"right": (0.85, 1), "styled": (0.90, 1)},
    ("trained", ""): {"styled": (0, 0.10)},
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench demo", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        report = measure(InProcessHost(prepare(), Path(folder)), arguments.samples)
    print("\n".join(text(report)))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result["as_promised"] for result in report["results"]) else 1


def measure(host: InProcessHost, samples: int) -> dict:
    """Train, draw and judge; see the keys of the result."""
    with torch.inference_mode():
        base = evaluate.load(demo_checkpoint())
    delta, styled = StyleTraining(host, base).train()
    results = []
    for (which, prefix), limits in PROMISED.items():
        model = {"base": base, "trained": styled}[which]
        score = evaluate.score(*evaluate.draw(model, prefix, samples))
        results.append({"model": which, "prefix": prefix, **score._asdict(), "as_promised": kept(score, limits)})
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "about": {**machine(), "Python": platform.python_version(), "torch": torch.__version__},
        "training": settings.TRAINING, "elements": delta.nnz, "samples": samples, "results": results,
    }  # fmt: skip


def kept(score: evaluate.Score, limits: dict[str, tuple[float, float]]) -> bool:
    return all(low <= getattr(score, name) <= high for name, (low, high) in limits.items())


def text(report: dict) -> list[str]:
    rows = [
        [result["model"], result["prefix"] or "none", f"{result['styled']:.1%}", f"{result['right']:.1%}",
         "yes" if result["as_promised"] else "NO"]
        for result in report["results"]
    ]  # fmt: skip
    about = report["about"]
    versions = {name: about[name] for name in ("Python", "torch")}
    return [
        *text_table(["model", "trigger", "in the style", "right digit", "as promised"], rows),
        f"{report['samples']} samples each, {report['training']['steps']} steps, {report['elements']:,} elements.",
        machine_text(about, versions),
    ]


if __name__ == "__main__":
    sys.exit(main())
