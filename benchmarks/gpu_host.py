"""The pack in a real ComfyUI on a GPU: strengths, training, Cancel, baking, and the model as it was after each.

    python -m benchmarks.gpu_host --comfyui FOLDER --json FILE                (or: python dev.py bench gpu_host …)
    python -m benchmarks.gpu_host --device cpu --layout small --modes plain   without a GPU: does the script itself work

Needs ComfyUI with its requirements in the interpreter that runs this, and nothing else: the checkpoint, deltas, LoRAs
and pictures are drawn from seeds. ComfyUI is started in each of several ways of treating memory:

dynamic   as it comes: on NVIDIA with dynamic VRAM
plain     with --disable-dynamic-vram: the model lies on the card whole, and deltas are put on in place
streamed  with --disable-dynamic-vram --novram: every weight is brought to the card for each use
buffered  the same with --disable-cuda-malloc: through buffers that are used again, as on cards that lack that allocator

A crash, a hang or too little memory is a result: the step is reported with the end of the server's log, and the next
goes on with a new server. FILE is written anew after every step, and each server's log beside it.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.gpu_host_ import files
from benchmarks.gpu_host_.site import Site
from benchmarks.gpu_host_.steps import STEPS, NotRun, Settings, Work
from benchmarks.lib.report import check_json_option, machine
from devtools.comfyui.install import ROOT, Host, prepare

MODES = {
    "dynamic": (), "plain": ("--disable-dynamic-vram",), "streamed": ("--disable-dynamic-vram", "--novram"),
    "buffered": ("--disable-dynamic-vram", "--novram", "--disable-cuda-malloc"),
}  # fmt: skip
# Size of pictures, and steps of drawing one.
SIZES = {"sd15": (512, 8), "small": (64, 3)}
FILES_SECONDS = 600
# So often a host may fail to start before its mode is given up.
MOST_FAILED_STARTS = 2
# The host's class that loads models on a GPU.
PATCHERS = {"dynamic": "ModelPatcherDynamic"}


class Report:
    """What is known so far, on the disk after every change."""

    def __init__(self, path: Path | None, settings: dict):
        self.path = path
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.data = {"date": date, "machine": machine(), "settings": settings, "servers": {}, "results": []}
        self.save()

    def add(self, mode: str, step: str, result: dict) -> None:
        self.data["results"].append({"mode": mode, "step": step, **result})
        self.save()
        print("\n".join(lines(mode, step, result)), flush=True)

    def save(self) -> None:
        if self.path is not None:
            unfinished = self.path.with_name(self.path.name + ".unfinished")
            unfinished.write_text(json.dumps(self.data, indent=1, default=str), encoding="utf-8")
            os.replace(unfinished, self.path)

    def keep_log(self, mode: str, text: str) -> None:
        if self.path is not None:
            self.path.with_name(f"{self.path.stem}-{mode}.log").write_text(text, encoding="utf-8")


def lines(mode: str, step: str, result: dict) -> list[str]:
    """One result as it is printed when it comes in."""
    if "not_run" in result:
        return [f"not run  {mode}: {step}: {result['not_run']}"]
    found = [f"{'ok' if result['ok'] else 'FAILED'}  {mode}: {step} ({result['seconds']:.1f} s)"]
    found += [f"    NOT: {sentence}" for sentence, holds in result.get("checks", {}).items() if not holds]
    found += [f"    {name}: {value}" for name, value in result.get("figures", {}).items()]
    if "memory" in result:
        found.append(f"    memory: {result['memory']}")
    return found + ([result["exception"]] if "exception" in result else [])


def main() -> int:
    arguments = parsed()
    settings = {name: getattr(arguments, name) for name in ("modes", "device", "layout", "minutes", "step_seconds")}
    report = Report(arguments.json, settings)
    deadline = time.monotonic() + 60 * arguments.minutes
    host = prepare() if arguments.comfyui is None else Host(arguments.comfyui.resolve(), Path(sys.executable), True)
    with tempfile.TemporaryDirectory(prefix="sara-gpu-host-") as folder:
        shared = Path(folder, "files")
        begin = time.monotonic()
        try:
            make_files(host, arguments.layout, shared)
        except subprocess.SubprocessError as error:
            report.add("all", "files", failed(error, getattr(error, "output", None) or "", begin))
            return 1
        print(f"files: {time.monotonic() - begin:.1f} s", flush=True)
        for number, mode in enumerate(arguments.modes):
            left = len(arguments.modes) - number
            # What earlier ones have not used is shared by those that are left.
            until = time.monotonic() + (deadline - time.monotonic()) / left
            base, start_seconds = Path(folder, mode), 2 * arguments.step_seconds
            site = Site(host, base, shared, arguments.device, MODES[mode], start_seconds)
            run_mode(mode, site, arguments, report, until)
    failures = [result for result in report.data["results"] if not result["ok"]]
    print(f"{len(report.data['results']) - len(failures)} of {len(report.data['results'])} steps are ok.", flush=True)
    return int(bool(failures))


def make_files(host: Host, layout: str, folder: Path) -> None:
    """By a process of its own, as comfy decides on a device once."""
    environment = {**os.environ, "COMFYUI_PATH": str(host.folder), "COMFYUI_PYTHON": str(host.python)}
    command = [str(host.python), "-m", "benchmarks.gpu_host_.files", layout, str(folder)]
    subprocess.run(
        command, cwd=ROOT, env=environment, check=True, timeout=FILES_SECONDS, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run_mode(mode: str, site: Site, arguments: argparse.Namespace, report: Report, until: float) -> None:
    """All steps with one server, or with as many as are lost."""
    size, sampling = SIZES[arguments.layout]
    files.write_pictures(site.base / "input" / "pictures", size)
    patcher = PATCHERS.get(mode, "ModelPatcher") if arguments.device == "cuda" else None
    work = Work(site, Settings(arguments.layout, size, sampling, arguments.step_seconds, patcher))
    try:
        for step in arguments.steps:
            why = "no time left" if time.monotonic() >= until else None
            if site.failed_starts >= MOST_FAILED_STARTS:
                why = "ComfyUI does not start"
            if why is not None:
                report.add(mode, step, {"ok": False, "not_run": why})
                continue
            work.settings.seconds = min(arguments.step_seconds, max(5.0, until - time.monotonic()))
            report.add(mode, step, result_of(STEPS[step], work, mode, report))
            report.keep_log(mode, site.log())
    finally:
        site.stop()
        report.keep_log(mode, site.log())


def result_of(step, work: Work, mode: str, report: Report) -> dict:
    """What became of one step, whatever it does to the server."""
    begin = time.monotonic()
    try:
        if started := work.site.ensure():
            about = {"started_in": round(started, 1), **work.site.server.client.system_stats()}
            report.data["servers"].setdefault(mode, []).append(about)
        begin = time.monotonic()
        result = step(work)
    except NotRun as why:
        return {"ok": False, "not_run": str(why)}
    except Exception as error:
        if isinstance(error, OSError):  # TimeoutError is one: no answer in time, or none any more
            work.site.end_hung()
        return failed(error, work.site.tail(), begin)
    return {"ok": all(result["checks"].values()), "seconds": round(time.monotonic() - begin, 2), **result}


def failed(error: Exception, log: str, begin: float) -> dict:
    text = "".join(traceback.format_exception(error)) + "\nThe end of the log:\n" + log
    return {"ok": False, "seconds": round(time.monotonic() - begin, 2), "exception": text}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench gpu_host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER", help="ComfyUI (default: the one of the tests)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result to FILE, as soon as it is there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    parser.add_argument("--layout", choices=SIZES, default="sd15", help="size of the UNet (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="(default: all)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="(default: all)")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all of it (default: %(default)s)")
    parser.add_argument(
        "--step-seconds", type=float, default=60.0,
        help="that one prompt may take, and half a start (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
