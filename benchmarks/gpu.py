"""Everything that a GPU is needed for to know, in minutes: is it right, how fast is it, what does it take.

    python -m benchmarks.gpu --json FILE                           (or: python dev.py bench gpu --json FILE)
    python -m benchmarks.gpu --device cpu --small --json FILE      without a GPU: does the script itself work
    python -m benchmarks.gpu --table FILE                          print the tables of such a file again

Needs torch, triton, peft and this repository; no network, no ComfyUI, no diffusers. Two parts:

checks   every path of ours on the GPU against the CPU: routes, kernels, gradients, steps, applying, streaming, …
steps    time and peak memory of a training step in bf16: the floor, PEFT's LoRA and SHiRA, ours

Everything runs in processes that may crash, hang or run out of memory: that is a result, and the next measurement goes
on. FILE is written anew after every result, so that whatever cuts the run off, nothing is lost. Committed results lie
in benchmarks/results.
"""

import argparse
import datetime
import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu_.tables import error_text, tables
from benchmarks.lib.report import check_json_option
from devtools.comfyui.install import ROOT

MARK, SPOILED = "@@", 3
# Lanes of a part run at the same time: checks may, as nobody times them. On the CPU the start of each is too long.
PARTS = {
    "cuda": {
        "checks": ("routes fp32", "routes bf16", "routes fp16", "model gradients", "model"), "steps": ("steps",),
    },
    "cpu": {"checks": ("checks",), "steps": ("steps",)},
}  # fmt: skip
# Seconds that a process may take to start, and one item, in which dozens of kernels may have to be compiled; and for
# all checks.
START_SECONDS, ITEM_SECONDS, CHECKS_SECONDS = 120, 150, 110
# Processes that a lane may lose before it is given up.
CRASHES = 6


class Report:
    """What is known so far, on the disk after every change."""

    def __init__(self, path: Path | None, settings: dict):
        self.path, self.lock = path, threading.Lock()
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.data = {"date": date, "revision": _revision(), "settings": settings, "about": {}, "results": [],
                     "seconds": {}}
        self.save()

    def add(self, part: str, item: str, result: dict) -> None:
        result = {"part": part, "item": item, **result}
        with self.lock:
            self.data["results"].append(result)
            self.save()
            if not result["ok"] or part != "checks":  # checks by the hundred: in the file, and counted by `ended`
                print(line(result), flush=True)

    def ended(self, part: str, item: str, seconds: float) -> None:
        with self.lock:
            self.data["seconds"][item] = seconds
            self.save()
            of_item = [result for result in self.data["results"] if (result["part"], result["item"]) == (part, item)]
            if part == "checks":
                okay = sum(result["ok"] for result in of_item)
                print(f"{okay} of {len(of_item)} ok in {seconds:.1f} s: {item}", flush=True)

    def describe(self, about: dict) -> None:
        with self.lock:
            if not self.data["about"]:
                self.data["about"] = about
                self.save()
                print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)

    def save(self) -> None:
        if self.path is not None:
            unfinished = self.path.with_name(self.path.name + ".unfinished")
            unfinished.write_text(json.dumps(self.data, indent=1), encoding="utf-8")
            os.replace(unfinished, self.path)


def line(result: dict) -> str:
    """One result as it is printed when it comes in."""
    if "not_run" in result:
        return f"not run  {result['item']}: {result['not_run']}"
    state = "ok" if result["ok"] else "FAILED"
    name = f"{result['item']}: {result['name']}" if result["part"] == "checks" else result["item"]
    if "exception" in result:
        return f"{state}  {name}\n{result['exception']}"
    if "out_of_memory" in result:
        return f"{state}  {name}: out of memory"
    if "step" in result:
        growth = result["peak"] - result["loaded"]
        return f"{state}  {name}: {1000 * result['step']:.1f} ms, {growth:,.0f} MiB above {result['loaded']:,.0f}"
    return f"{state}  {name}: {error_text(result)} {result['note']}".rstrip()


class Lane:
    """Items that run one after the other, in a new process whenever one is lost.

    left: names of the items that nobody has begun; None before the first process has told them
    """

    def __init__(self, name: str, part: str, arguments, report: Report, deadline: float, lanes_at_once: int = 1):
        self.name, self.part, self.report, self.deadline = name, part, report, deadline
        self.command = [sys.executable, "-m", "benchmarks.gpu_.worker", name, arguments.device]
        self.command.append("small" if arguments.small else "whole")
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if part == "checks":
            self.environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what torch's deterministic algorithms want
        threads = 1 if arguments.small else os.cpu_count() // lanes_at_once
        self.environment.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        self.left = None

    def run(self) -> None:
        for _ in range(CRASHES):
            self._run_worker()
            if not self.left or self.is_over:  # None: it did not even start
                break
        for item in self.left or ():
            why = "no time left" if self.is_over else "processes crash too often"
            self.report.add(self.part, item, {"name": item, "ok": self.is_over, "not_run": why})

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    def _run_worker(self) -> None:
        """Until all items are done, or the process is lost or stopped."""
        worker = subprocess.Popen(
            self.command, cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        lines = queue.Queue()
        threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True).start()
        self.running, self.results, self.stop = None, 0, time.monotonic() + START_SECONDS
        why = None
        while True:
            try:
                message = lines.get(timeout=max(0.0, min(self.stop, self.deadline) - time.monotonic()))
            except queue.Empty:
                why = "it took too long and was stopped"
                worker.kill()
                break
            if message is None:
                break
            self._take(message, worker)
        with suppress(OSError):  # it is gone
            worker.stdin.close()
        try:
            code = worker.wait(timeout=30)
        except subprocess.TimeoutExpired:
            worker.kill()
            code = worker.wait()
        if self.is_over and why is not None:
            why = f"no time left after {self.results} results"
            self._add({"name": self.running or self.name, "ok": True, "not_run": why})
        elif why or self.running is not None or code not in (0, SPOILED):
            self._add({"name": "all of it", "ok": False, "exception": why or f"its process ended with code {code}"})

    def _take(self, message: dict, worker) -> None:
        if "names" in message:
            self.left = message["names"] if self.left is None else self.left
            with suppress(OSError):
                worker.stdin.write("".join(f"{name}\n" for name in self.left))
                worker.stdin.close()
        elif "about" in message:
            self.report.describe(message["about"])
        elif "begin" in message:
            self.running, self.results, self.stop = message["begin"], 0, time.monotonic() + ITEM_SECONDS
            self.left = self.left[1:]
        elif "result" in message:
            self.results += 1
            self._add(message["result"])
        elif "end" in message:
            self.report.ended(self.part, self.running, message["seconds"])
            self.running = None

    def _add(self, result: dict) -> None:
        self.report.add(self.part, self.running or self.name, result)


def _read(stream, lines: queue.Queue) -> None:
    """A worker's messages; what else is printed there is printed here; None at the end."""
    for text in stream:
        if text.startswith(MARK):
            lines.put(json.loads(text[len(MARK):]))
        else:
            print(text, end="", flush=True)
    lines.put(None)


def _revision() -> str | None:
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() or None


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result to FILE, as soon as it is there")
    parser.add_argument("--parts", nargs="+", choices=PARTS["cuda"], default=list(PARTS["cuda"]), help="(default: all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a tiny model and few steps, to try the script")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing: print the tables of a FILE")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    return arguments


def main() -> int:
    arguments = parsed()
    if arguments.table:
        print("\n".join(tables(json.loads(arguments.table.read_text(encoding="utf-8")))))
        return 0
    start = time.monotonic()
    settings = {name: getattr(arguments, name) for name in ("parts", "minutes", "device", "small")}
    report = Report(arguments.json, settings)
    for part in arguments.parts:
        deadline = start + 60 * arguments.minutes
        if part == "checks" and arguments.device == "cuda":
            deadline = min(deadline, time.monotonic() + CHECKS_SECONDS)
        names = PARTS[arguments.device][part]
        run_lanes([Lane(name, part, arguments, report, deadline, len(names)) for name in names])
        print(f"{part}: {time.monotonic() - start:.0f} s since the start", flush=True)
    print("\n".join(tables(report.data)), flush=True)
    return int(any(not result["ok"] for result in report.data["results"]))


def run_lanes(lanes: list[Lane]) -> None:
    threads = [threading.Thread(target=lane.run) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
