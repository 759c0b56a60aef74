"""Figures as lines of JSON in a file, added as they come, so that a stopped run goes on where it was."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple


_ADDING = Lock()


class Job(NamedTuple):
    """key: what a line is of; measure: its figures. Both of values that JSON has, tuples counting as lists."""

    key: Mapping[str, object]
    measure: Callable[[], dict]


def run(
    jobs: Sequence[Job], made_with: dict, file: Path, say=print, at_once: int = 1,
    failed: Callable[[Job, Exception], None] | None = None,
) -> list[dict | None]:  # fmt: skip
    """Measure what is not yet in the file, adding a line for each; returns the lines of all jobs, in their order.

    made_with: what the figures depend on; lines that were made with something else do not count
    at_once: jobs that are waited for at a time; above 1 for those that other processes measure
    failed: told of a job that raises, which then has None in its line's place; by default the first one ends the run

    Several runs of one process may add to a file at a time.
    """
    with _ADDING:
        known = [line for line in read(file) if line["made with"] == made_with]
        _cut_to_whole_lines(file)

    def line_of(numbered: tuple[int, Job]) -> dict | None:
        number, job = numbered
        line = of(known, job.key)
        if line is None:
            try:
                figures = job.measure()
            except Exception as error:
                if failed is None or isinstance(error, CancelledError):
                    raise
                failed(job, error)
                return None
            line = json.loads(json.dumps({**job.key, **figures, "made with": made_with}))
            known.append(line)
            with _ADDING, file.open("a", encoding="utf-8") as added:
                added.write(json.dumps(line) + "\n")
            say(f"{number} of {len(jobs)}: {line}")
        return line

    with ThreadPoolExecutor(at_once) as waiting:
        try:
            return list(waiting.map(line_of, enumerate(jobs, 1)))
        except BaseException:
            waiting.shutdown(cancel_futures=True)
            raise


def read(file: Path) -> list[dict]:
    """What a file of results has; nothing if there is none. A line that a stop cut off does not count."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def of(known: Sequence[dict], key: Mapping[str, object]) -> dict | None:
    """The first line of what `key` says; None if there is none."""
    plain = json.loads(json.dumps(dict(key)))
    return next((line for line in known if all(line.get(name) == value for name, value in plain.items())), None)


def _cut_to_whole_lines(file: Path) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in read(file)), encoding="utf-8")
    partial.replace(file)
