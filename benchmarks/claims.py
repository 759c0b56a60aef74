"""The paper's claims on pictures that anyone may use: methods of equal size, tuned alike, judged by what they draw.

    python dev.py bench claims [--tier T1] [--quick] [--json FILE] [--work FOLDER] [--threads N]

The base model, benchmarks/claims_/unet.safetensors, knows Noto's icons by name; each cell teaches it another set's
style by one method and measures pictures of names that nobody trained on (benchmarks/claims_/protocol.py says what is
compared and how it is tuned). Lines of JSON are added to FILE as they come, and a stopped run goes on with the same
command.
--quick answers in about ten minutes, with the rates of the committed results and wide intervals.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from demo import comfy_host

RESULTS = Path(__file__).resolve().parent / "results" / "claims.jsonl"
QUICK_STEPS, QUICK_JUDGED, QUICK_SEEDS, QUICK_METHODS = 100, 60, (0, 1, 2), ("LoRA", "SaRA")


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench claims", description=__doc__.splitlines()[0])
    parser.add_argument("--tier", choices=["T1", "T2", "T3", "T4"], default="T1")
    parser.add_argument("--quick", action="store_true", help="LoRA and SaRA, one style, short runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="lines of what was measured; gone on with if there")
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="where icons are kept")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comfy_host.prepare()

    from benchmarks.claims_ import base, icon_sets, judge, tables

    missing = [file.name for file in (base.AUTOENCODER_FILE, base.UNET_FILE, judge.FILE) if not file.is_file()]
    if missing:
        print(f"error: there is no {', '.join(missing)} in benchmarks/claims_: they are trained by "
              "benchmarks/claims_/train_base.py and train_judge.py.", file=sys.stderr)  # fmt: skip
        return 1
    file = arguments.json or arguments.work / ("quick.jsonl" if arguments.quick else "claims.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    try:
        lines = (quick if arguments.quick else table)(arguments, file)
    except icon_sets.NoIconsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{tables.overview(lines)}\n{tables.differences(lines)}")
    print(f"{(time.perf_counter() - begin) / 3600:.2f} hours; lines in {file}")
    return 0


def table(arguments: argparse.Namespace, file: Path) -> list[dict]:
    """Tune every method of the tier, then measure its cells; the lines of the latter."""
    from benchmarks.claims_ import bench, plan

    measuring = bench.Bench(arguments.work / "icons")

    def rate(method: str, share: float) -> float:
        return plan.best_rate(bench.run(measuring, plan.tuning(method, share), file))

    return bench.run(measuring, plan.cells(arguments.tier, rate), file)


def quick(arguments: argparse.Namespace, file: Path) -> list[dict]:
    """A few short runs in one style, at the rates that the committed results have."""
    from benchmarks.claims_ import bench, plan, protocol
    from benchmarks.claims_.training import Settings

    measuring = bench.Bench(arguments.work / "icons", Settings(steps=QUICK_STEPS), QUICK_JUDGED)
    share, tuned = protocol.BUDGETS[1], bench.lines(RESULTS)

    def rate(method: str) -> float:
        tries = set(plan.tuning(method, share))
        found = [line for line in tuned if bench.cell_of(line) in tries]
        return plan.best_rate(found) if found else protocol.MIDDLE_RATE[method]

    chosen = [
        protocol.Cell(method, share, protocol.T1_STYLES[0], seed, rate(method))
        for seed in QUICK_SEEDS for method in QUICK_METHODS
    ]  # fmt: skip
    return bench.run(measuring, chosen, file)


if __name__ == "__main__":
    sys.exit(main())
