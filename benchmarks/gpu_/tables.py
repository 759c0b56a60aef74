"""The results of gpu.py as tables."""

from collections import Counter
from collections.abc import Iterator

from benchmarks.lib.report import text_table

HEADER = [
    "", "trained", "step, ms", "÷ floor", "÷ LoRA att.", "growth, MiB", "− floor's", "÷ peak LoRA att.", "update",
    "gradient", "preparing, s", "first step, s", "of it routes, s",
]  # fmt: skip


def tables(report: dict) -> list[str]:
    """Lines: the machine, the checks, and for each configuration the methods and the routes that were chosen."""
    about = report["about"]
    machine = ", ".join(str(about[key]) for key in ("card", "processor") if key in about)
    versions = ", ".join(f"{key} {about[key]}" for key in ("driver", "torch", "triton", "peft") if about.get(key))
    lines = ["", f"{machine}; {versions}; {report['date']}"]
    checks = [result for result in report["results"] if result["part"] == "checks"]
    if checks:
        lines += ["", *_checks(checks)]
    steps = [result for result in report["results"] if result["part"] == "steps"]
    for configuration in dict.fromkeys(r["configuration"] for r in steps if "configuration" in r):
        lines += ["", configuration, *_steps([r for r in steps if r.get("configuration") == configuration])]
    lines += [f"FAILED {r['item']}: {_last_line(r['exception'])}" for r in steps if "exception" in r]
    not_run = [r["item"] for r in steps if "not_run" in r]
    lines += [f"Not run: {', '.join(not_run)}."] if not_run else []
    return lines


def _checks(checks: list[dict]) -> Iterator[str]:
    failed = [result for result in checks if not result["ok"] and "not_run" not in result]
    done = [result for result in checks if "not_run" not in result]
    yield f"{len(done) - len(failed)} of {len(done)} checks are ok, {len(checks) - len(done)} items were not run."
    for result in failed:
        said = _last_line(result["exception"]) if "exception" in result else error_text(result)
        yield f"FAILED {result['item']}: {result['name']}: {said}"


def _steps(results: list[dict]) -> Iterator[str]:
    by_name = {result["name"]: result for result in results if "step" in result}
    floor, lora = by_name.get("floor"), by_name.get("LoRA attention")
    rows = []
    for result in results:
        if "step" not in result:
            rows.append([result["name"], "", "out of memory", *[""] * (len(HEADER) - 3)])
            continue
        growth = result["peak"] - result["loaded"]
        rows.append([
            result["name"] if result["ok"] else f"{result['name']} (not finite)",
            f"{result['trained_elements'] / 1e6:.2f} M", f"{1000 * result['step']:.1f}",
            _ratio(result, floor, "step"), _ratio(result, lora, "step"), f"{growth:,.0f}",
            f"{growth - floor['peak'] + floor['loaded']:,.0f}" if floor else "", _ratio(result, lora, "peak"),
            f"{result['update_share']:.1%}", "" if result["gradient_share"] is None else
            f"{result['gradient_share']:.1%}", f"{result['preparing']:.2f}", f"{result['first_step']:.2f}",
            f"{result['finding_routes']:.2f}",
        ])  # fmt: skip
    yield from text_table(HEADER, rows)
    for result in by_name.values():
        if result["routes"]:
            counts = Counter((route["layer"], route["route"]) for route in result["routes"])
            found = ", ".join(f"{layer} {route} {count}" for (layer, route), count in sorted(counts.items()))
            yield f"Routes of {result['name']}, kinds of layers: {found}."


def error_text(result: dict) -> str:
    error = "NaN" if result["error"] is None else f"{result['error']:.2e}"
    return f"{error} (limit {result['limit']:.1e})"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def _ratio(result: dict, other: dict | None, key: str) -> str:
    return f"{result[key] / other[key]:.3f}" if other and other[key] else ""
