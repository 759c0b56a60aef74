"""The paper's claims on pictures that anyone may use: methods of equal size, tuned alike, judged by what they draw.

    python dev.py bench claims [--tier T1 | --part PART] [--quick] [--json FILE] [--work FOLDER]
                               [--processes N] [--threads N] [--device DEVICE]

The base model, benchmarks/claims_/unet.safetensors, knows Noto's icons by name; each cell teaches it another set's
style by one method and measures pictures of names that nobody trained on (benchmarks/claims_/protocol.py says what is
compared and how it is tuned). Lines of JSON are added to FILE as they come, and a stopped run goes on with the same
command. A cell of the table that fails is told of, and the others are measured all the same.
--quick answers in about ten minutes, with the rates of the committed results and wide intervals.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch

from demo import comfy_host

RESULTS = Path(__file__).resolve().parent / "results" / "claims.jsonl"
QUICK_STEPS, QUICK_JUDGED, QUICK_SEEDS, QUICK_METHODS = 100, 60, (0, 1, 2), ("LoRA", "SaRA")


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench claims", description=__doc__.splitlines()[0])
    parser.add_argument("--tier", choices=["T1", "T2", "T3", "T4"], default="T1")
    parser.add_argument("--part", choices=["premise", "ablation", "strength", "merging", "subject", "motion",
                                             "candidates", "whole-runs", "better"],
                        help="what the paper says beside its table, instead of the table")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="LoRA and SaRA, one style, short runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="lines of what was measured; gone on with if there")
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="where icons are kept")
    parser.add_argument("--processes", type=int, default=1, help="cells, or jobs of a part, measured at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--device", default="cpu",
                        help="what trains, draws and judges, as cuda: by the same random numbers, but its lines do not "
                             "count among those of the CPU (default: %(default)s)")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.part not in (None, "better") and arguments.tier != "T1":
        parser.error(f"--part {arguments.part} has no tiers.")
    if arguments.part == "motion" and arguments.device != "cpu":
        parser.error("--part motion is measured on the CPU only.")
    torch.set_num_threads(arguments.threads)
    comfyui = comfy_host.prepare()

    from benchmarks.claims_ import base, icon_sets, judge, motion_model, tables
    from benchmarks.claims_.table import Failures

    needed = [base.AUTOENCODER_FILE, base.UNET_FILE, judge.FILE]
    needed = [motion_model.FILE] if arguments.part == "motion" else needed
    missing = [file.name for file in needed if not file.is_file()]
    if missing:
        print(f"error: there is no {', '.join(missing)} in benchmarks/claims_: they are trained by "
              "benchmarks/claims_/train_base.py, train_judge.py and motion_train.py.", file=sys.stderr)  # fmt: skip
        return 1
    file = arguments.json or arguments.work / ("quick.jsonl" if arguments.quick else "claims.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    begin, failures = time.perf_counter(), Failures()
    try:
        own = {None: partial(table, comfyui, failures), "motion": motion,
               "candidates": partial(candidates, comfyui, failures), "better": partial(better, comfyui, failures),
               "whole-runs": partial(whole_runs, comfyui, failures)}  # fmt: skip
        measure = quick if arguments.quick else own.get(arguments.part, partial(part, comfyui, failures))
        measured = measure(arguments, file)
    except icon_sets.NoIconsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if measured:
        print(tables.of_part(arguments.part, measured) if arguments.part else tables.of_methods(measured))
    print(f"{(time.perf_counter() - begin) / 3600:.2f} hours; lines in {file}")
    if failures:
        print(f"error: {len(failures)} cells failed; the same command tries them again.", file=sys.stderr)
    return int(bool(failures))


def table(comfyui: Path, failures, arguments: argparse.Namespace, file: Path) -> list[dict]:
    """Tune every method of the tier, then measure its cells; the lines of the latter."""
    from benchmarks.claims_ import bench
    from benchmarks.claims_.table import measured
    from benchmarks.claims_.workers import Workers

    measuring = bench.Bench(arguments.work / "icons", device=arguments.device)
    with Workers(arguments.processes, arguments.threads, comfyui, measuring) as workers:
        return measured(arguments.tier, measuring, workers, file, failures)


def part(comfyui: Path, failures, arguments: argparse.Namespace, file: Path) -> list[dict]:
    """The lines of what the paper says beside its table."""
    from benchmarks.claims_ import bench
    from benchmarks.claims_.table import of_part
    from benchmarks.claims_.workers import Workers

    measuring = bench.Bench(arguments.work / "icons", device=arguments.device)
    with Workers(arguments.processes, arguments.threads, comfyui, measuring) as workers:
        return of_part(arguments.part, measuring, workers, file, failures)


def better(comfyui: Path, failures, arguments: argparse.Namespace, file: Path) -> list[dict]:
    """The lines of what came out on top of the candidates, in the styles and at the budgets of a tier."""
    from benchmarks.claims_ import bench, table
    from benchmarks.claims_.workers import Workers

    measuring = bench.Bench(arguments.work / "icons", device=arguments.device)
    with Workers(arguments.processes, arguments.threads, comfyui, measuring) as workers:
        return table.of_better(arguments.tier, measuring, workers, file, failures)


def candidates(comfyui: Path, failures, arguments: argparse.Namespace, file: Path) -> list[dict]:
    """The lines of what could make the defaults better, halved round by round."""
    from benchmarks.claims_ import bench, lines, protocol
    from benchmarks.claims_ import candidates as tried
    from benchmarks.claims_.table import prepare, tuned_rates
    from benchmarks.claims_.training import Settings
    from benchmarks.claims_.workers import Workers

    def of(measuring: bench.Bench, cells: list[protocol.Cell]) -> list[dict | None]:
        with Workers(arguments.processes, arguments.threads, comfyui, measuring) as workers:
            prepare([protocol.TUNING_STYLE], measuring, workers)
            jobs = list(map(workers.job, cells))
            return lines.run(jobs, measuring.made_with, file, at_once=workers.processes, failed=failures)

    def of_round(one: tried.Round, cells: list[protocol.Cell]) -> list[dict | None]:
        settings = Settings(steps=round(one.length * Settings.steps))
        return of(bench.Bench(arguments.work / "icons", settings, one.judged, arguments.device), cells)

    asked = "SaRA", tried.SHARE
    whole = bench.Bench(arguments.work / "icons", device=arguments.device)
    rates = tuned_rates([asked], partial(of, whole))
    return tried.halved(of_round, rates[asked]) if rates else []


def whole_runs(comfyui: Path, failures, arguments: argparse.Namespace, file: Path) -> list[dict]:
    """The lines of candidates that a quarter of a run says little of, in whole runs."""
    from benchmarks.claims_ import bench, candidates, lines, plan, protocol
    from benchmarks.claims_.table import prepare
    from benchmarks.claims_.workers import Workers

    measuring = bench.Bench(arguments.work / "icons", device=arguments.device)
    rate = plan.best_known_rate(lines.read(RESULTS), "SaRA", candidates.SHARE)
    with Workers(arguments.processes, arguments.threads, comfyui, measuring) as workers:
        prepare([protocol.TUNING_STYLE], measuring, workers)
        jobs = list(map(workers.job, candidates.whole_runs(rate)))
        found = lines.run(jobs, measuring.made_with, file, at_once=workers.processes, failed=failures)
        return [line for line in found if line is not None]


def motion(arguments: argparse.Namespace, file: Path) -> list[dict]:
    """The lines of a motion that the base of the motions has never seen."""
    from benchmarks.claims_ import lines, motion_clips, tuning
    from benchmarks.claims_ import motion as motions

    icons = motion_clips.small_icons(arguments.work / "icons")

    def tuned(measuring: motions.Bench, asked: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
        def scores(tries: list[tuple[tuple[str, str], int]]) -> list[float]:
            jobs = [motions.tuning_job(measuring, *one, half) for one, half in tries]
            return [motions.tuning_score(line) for line in lines.run(jobs, measuring.made_with, file)]

        return {one: motions.rate(half) for one, half in tuning.best(asked, scores).items()}

    short, longer = motions.Bench(icons), motions.Bench(icons, settings=motions.LONGER)
    rates = tuned(short, [(method, where) for where in motions.WHERE for method in motions.METHODS])
    found = lines.run(motions.jobs(short, rates), short.made_with, file)
    rates = tuned(longer, [(method, motions.WHERE[0]) for method in motions.METHODS_LONGER])
    found += lines.run(motions.longer_jobs(longer, rates), longer.made_with, file)
    return found + lines.run([motions.module_job(short)], short.made_with, file)


def quick(arguments: argparse.Namespace, file: Path) -> list[dict]:
    """A few short runs in one style, at the rates that the committed results have."""
    from benchmarks.claims_ import bench, lines, plan, protocol
    from benchmarks.claims_.training import Settings

    measuring = bench.Bench(arguments.work / "icons", Settings(steps=QUICK_STEPS), QUICK_JUDGED, arguments.device)
    share, known = protocol.BUDGETS[1], lines.read(RESULTS)
    chosen = [
        protocol.Cell(method, share, protocol.T1_STYLES[0], seed, plan.best_known_rate(known, method, share))
        for seed in QUICK_SEEDS for method in QUICK_METHODS
    ]  # fmt: skip
    return lines.run([measuring.job(cell) for cell in chosen], measuring.made_with, file)


if __name__ == "__main__":
    sys.exit(main())
