"""Which families of models a ComfyUI has, and which of them train and load to the last bit.

    python dev.py bench families [--host PATH] [--only NAME …] [--json FILE]

Of every configuration class that ComfyUI has registered a small random model is made, in each of its variants that
matter (image to video, inpainting, editing …), and then, with the real nodes: SaRA Train runs and leaves the MODEL as
it was, SaRA Loader and the stock Load LoRA give base + Δ to the last bit, the gradients are those of plain autograd and
those that the loss's own differences show, and the loss of a fixed batch falls. A class is exact if all of that holds.

--host, or COMFYUI_PATH, measures another ComfyUI than the one of the tests: a new version is measured by this command,
and names the classes that nobody has made a case for (benchmarks/families_). The cases run in a process that may crash
or hang: that is their outcome, and the next go on. The exit status is 1 if a promise is broken in one that is not
refused.
"""

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from benchmarks.families_.measure import CRASH, NOT_BUILT, NOT_EXACT
from benchmarks.families_.process import Workers
from benchmarks.families_.tables import markdown
from benchmarks.lib.report import check_json_option, machine
from devtools.comfyui.install import Host, HostError, prepare
from devtools.progress import Progress


def main() -> int:
    arguments = parsed()
    progress = Progress()
    try:
        workers = Workers(host_at(arguments.host, progress))
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        results = measured(workers, arguments.only, progress)
    finally:
        workers.close()
    report = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "about": machine(),
        "versions": {
            "ComfyUI": workers.about["version"], "torch": version("torch"), "Python": platform.python_version(),
        },
        "results": results,
    }  # fmt: skip
    print("\n".join(markdown(report)))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if any(result["outcome"] in (NOT_EXACT, CRASH) for result in results) else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench families", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", type=Path, metavar="PATH", help="a folder of ComfyUI (default: that of the tests)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only classes or cases with NAME in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result to FILE, too")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    return arguments


def host_at(folder: Path | None, progress: Progress) -> Host:
    """The ComfyUI to measure, to be run by this interpreter. Raises HostError if there is none."""
    if folder is None:
        return dataclasses.replace(prepare(progress=progress), python=Path(sys.executable))
    if not (folder / "comfy" / "supported_models.py").is_file():
        raise HostError(f"there is no ComfyUI in {folder} (no comfy folder with supported_models.py)")
    return Host(folder.resolve(), Path(sys.executable), is_users_own=True)


def measured(workers: Workers, only: list[str] | None, progress: Progress) -> list[dict]:
    """A result for every case, and one for every class without any."""
    classes = workers.about["classes"]
    todo = [(name, case) for name, cases in classes.items() for case in cases or [""] if asked_for(name, case, only)]
    results, begin = [], time.monotonic()
    for number, (name, case) in enumerate(todo, start=1):
        result = workers.measure(name, case) if case else without_case(name)
        results.append(result)
        progress.say(f"{number} of {len(todo)}: {case or name}: {result['outcome']}")
    counted = Counter(result["outcome"] for result in results)
    progress.say(f"{time.monotonic() - begin:.0f} s: " + ", ".join(f"{n} {what}" for what, n in counted.items()))
    return results


def asked_for(name: str, case: str, only: list[str] | None) -> bool:
    return only is None or any(part.lower() in f"{name} {case}".lower() for part in only)


def without_case(name: str) -> dict:
    why = "no case has been made for this class: add one in benchmarks/families_"
    return {"case": name, "class": name, "outcome": NOT_BUILT, "why": why}


if __name__ == "__main__":
    sys.exit(main())
