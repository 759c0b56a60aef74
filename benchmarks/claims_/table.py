"""A tier of the table, and what stands beside it, measured by workers.

Of a tier every method has its search for a learning rate, and behind it its cells: no method waits for another's
search, or most processes would have nothing to do meanwhile. Searches come first, then every method's first cell, every
method's second …, and so one budget after the other, so that what is there when a run stops can be compared.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import better, icon_sets, lines, parts, plan, protocol, render, tuning
from .bench import Bench
from .lines import Job
from .protocol import Cell
from .workers import Workers

# Ranks: what is lower comes first. The n-th cell of a method has the rank n; those of a tier's next budget, and before
# them its searches, go on from there.
BEFORE_SEARCH, SEARCH, BEFORE_CELLS = -3, -2, -1
Measured = Callable[[list[Cell]], list[dict | None]]
Rates = dict[tuple[str, float], float]  # learning rates by method and budget


class Failures(list):
    """Jobs that raised; each is told of, with its traceback, when it does."""

    def __call__(self, job: Job, error: Exception) -> None:
        self.append(job)
        told = "".join(traceback.format_exception(error))
        print(f"failed: {dict(job.key)}\n{told}", file=sys.stderr, flush=True)


def measured(tier: str, bench: Bench, workers: Workers, file: Path, failures: Failures) -> list[dict]:
    """The lines of a tier's cells, in the order of plan.cells; cells that fail have none. Lines of the searches are in
    the file only. Raises NoIconsError."""
    prepare(plan.styles(tier), bench, workers)
    asked = plan.tuned(tier)

    def run(jobs: list[Job]) -> list[dict | None]:
        return lines.run(jobs, bench.made_with, file, at_once=len(jobs) or 1, failed=failures)

    budgets = list(dict.fromkeys(share for _, share in asked))

    def of_one(one: tuple[str, float]) -> list[dict | None]:
        before = budgets.index(one[1]) * (1 + len(plan.cells(tier, {one: 0.0})))
        search = before - 1 if before else SEARCH
        rates = tuned_rates([one], lambda cells: run([workers.job(cell, search) for cell in cells]))
        return run([workers.job(cell, rank) for rank, cell in enumerate(plan.cells(tier, rates), before)])

    with ThreadPoolExecutor(len(asked)) as searching:
        try:
            found = [line for own in searching.map(of_one, asked) for line in own if line is not None]
        except BaseException:
            workers.stop()
            raise
    order = {(cell.method, cell.share, cell.style, cell.seed): place
             for place, cell in enumerate(plan.cells(tier, dict.fromkeys(asked, 0.0)))}  # fmt: skip
    return sorted(found, key=lambda line: order[line["method"], line["share"], line["style"], line["seed"]])


def of_part(part: str, bench: Bench, workers: Workers, file: Path, failures: Failures) -> list[dict]:
    """The lines of what the paper says beside its table; those of the searches for its rates are in the file only.
    Raises NoIconsError."""
    asked = [(method, parts.SHARE) for method in parts.RATED[part]]
    return _at_tuned_rates(
        asked, parts.STYLED[part], lambda rates: workers.jobs(part, rates, bench), bench, workers, file, failures
    )


def of_better(tier: str, bench: Bench, workers: Workers, file: Path, failures: Failures) -> list[dict]:
    """The lines of what came out on top of the candidates, budget by budget of a tier. Raises NoIconsError."""
    _, shares, styles = plan.TIERS[tier]
    found = []
    for share in shares:
        asked = [(method, share) for method in better.RATED]
        found += _at_tuned_rates(
            asked, styles, lambda rates: list(map(workers.job, better.cells(tier, share, rates))), bench, workers, file,
            failures,
        )  # fmt: skip
    return found


def _at_tuned_rates(
    asked: list[tuple[str, float]], styles: Sequence[str], jobs_at: Callable[[Rates], list[Job]], bench: Bench,
    workers: Workers, file: Path, failures: Failures,
) -> list[dict]:  # fmt: skip
    """The lines of jobs that need the learning rates of what is asked; none if one of these could not be tried."""

    def run(jobs: list[Job]) -> list[dict | None]:
        return lines.run(jobs, bench.made_with, file, at_once=workers.processes, failed=failures)

    if workers.processes > 1:  # one alone encodes what it needs when it needs it
        prepare([*([protocol.TUNING_STYLE] if asked else []), *styles], bench, workers)
    rates = tuned_rates(asked, lambda cells: run([workers.job(cell, SEARCH) for cell in cells]))
    if missing := [method for method, share in asked if (method, share) not in rates]:
        print(f"error: no learning rate of {', '.join(missing)} could be tried.", file=sys.stderr)
        return []
    return [line for line in run(jobs_at(rates)) if line is not None]


def prepare(styles: list[str], bench: Bench, workers: Workers) -> None:
    """Have pictures rendered and captions encoded by all processes, before each would do it for itself: those of the
    first style before anything else, those of the others while rates are searched for."""
    for icons in icon_sets.ALL:
        if icons.name in {icon_sets.NOTO.name, *styles}:
            render.pictures(icons, bench.work)
    for number, style in enumerate(styles):
        if missing := bench.contexts.missing(bench.captions(style)):
            bench.contexts.checkpoint()
            workers.encode(missing, BEFORE_SEARCH if number == 0 else BEFORE_CELLS, style)


def tuned_rates(asked: list[tuple[str, float]], measured: Measured) -> Rates:
    """The learning rate of each method at each budget, of those of which not every try failed.

    measured: the lines of cells, None for one that failed
    """
    scores: dict[tuple[tuple[str, float], int], float] = {}

    def scored(tries: list[tuple[tuple[str, float], int]]) -> list[float]:
        found = measured([plan.tuning(*one, half) for one, half in tries])
        scores.update(zip(tries, (float("-inf") if line is None else protocol.tuning_score(line) for line in found)))
        return [scores[one] for one in tries]

    best = tuning.best(asked, scored)
    return {one: plan.rate(one[0], half) for one, half in best.items() if scores[one, half] > float("-inf")}
