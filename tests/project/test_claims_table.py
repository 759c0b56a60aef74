"""How a tier of the claims' table is measured: by workers, whatever fails. Nothing is trained; no icons are needed."""

import threading
from concurrent.futures import CancelledError

import pytest

from benchmarks.claims_ import better, lines, parts, plan, protocol, render, table, tables, workers
from benchmarks.claims_.workers import Workers

TIER = "T1"
FIGURES = {**dict.fromkeys(tables.FIGURES, 0.5), "trained": 5, "training seconds": 1.0}


class Bench:
    """What the table asks of one. kept: captions that are already encoded"""

    work, made_with = None, {"base": "a"}

    def __init__(self, *kept):
        self.contexts, self.made = self, 0
        self.kept = {f"{style} {number}" for style in kept for number in range(3)}

    def captions(self, style):
        return [f"{style} {number}" for number in range(3)]

    def missing(self, captions):
        return [caption for caption in captions if caption not in self.kept]

    def checkpoint(self):
        self.made += 1


class Asked:
    """Workers that answer at once. fails: which cells raise"""

    def __init__(self, fails=lambda cell: False):
        self.fails, self.cells, self.encoded, self.lock = fails, [], [], threading.Lock()

    def job(self, cell, rank=0):
        def measure():
            with self.lock:
                self.cells.append((rank, cell))
            if self.fails(cell):
                raise RuntimeError("out of order")
            return {**FIGURES, "text": 0.5, "kid": abs(cell.rate - 3 * protocol.MIDDLE_RATE[cell.method]), "drift": 0.0}

        return lines.Job(cell._asdict(), measure)

    def jobs(self, part, rates, like):
        self.rates = {one: pytest.approx(rate) for one, rate in rates.items()}
        return [lines.Job(job.key, lambda: {"kid": 1.0}) for job in parts.jobs(part, like, rates)]

    def encode(self, captions, rank, called):
        self.encoded.append((called, rank, captions))

    def stop(self):
        pass


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(render, "pictures", lambda icons, folder: ([], []))


def measured(tmp_path, asked, bench=None, tier=TIER):
    failures = table.Failures()
    return table.measured(tier, bench or Bench(), asked, tmp_path / "lines.jsonl", failures), failures


def test_all_cells_are_measured_once_at_their_method_s_rate_in_the_plan_s_order(tmp_path):
    asked = Asked()
    found, failures = measured(tmp_path, asked)
    tuned = {(cell.method, cell.share): cell.rate for rank, cell in asked.cells if rank >= 0}
    assert not failures and [line["rate"] for line in found] == [cell.rate for cell in plan.cells(TIER, tuned)]
    assert len(asked.cells) == 5 * len(plan.PAPERS) + len(found) == len(lines.read(tmp_path / "lines.jsonl"))
    assert {rank for rank, cell in asked.cells if cell.style == protocol.TUNING_STYLE} == {table.SEARCH}
    # Of every method the first cell comes before any method's second.
    assert [sum(rank == number for rank, _ in asked.cells) for number in range(9)] == [len(plan.PAPERS)] * 9
    measured(tmp_path, asked)
    assert len(asked.cells) == 25 + len(found)


def test_one_budget_comes_after_the_other(tmp_path):
    asked = Asked()
    found, _ = measured(tmp_path, asked, tier="T2")
    first, second = protocol.BUDGETS[0], protocol.BUDGETS[2]
    ranks = {share: [rank for rank, cell in asked.cells if cell.share == share] for share in (first, second)}
    assert len(ranks[first]) == len(ranks[second]) == 4 * (5 + 9) and len(found) == 2 * 4 * 9
    assert max(ranks[first]) < min(ranks[second])
    searches = [rank for rank, cell in asked.cells if cell.share == second and cell.style == protocol.TUNING_STYLE]
    assert set(searches) == {min(ranks[second])}
    assert [line["share"] for line in found] == [first] * 36 + [second] * 36


def test_a_cell_that_fails_is_told_of_and_the_others_are_measured(tmp_path, capsys):
    found, failures = measured(tmp_path, Asked(lambda cell: cell.method == "LoRA" and cell.seed == 1))
    assert len(found) == 5 * 9 - 3 and len(failures) == 3
    told = capsys.readouterr().err
    assert told.count("RuntimeError: out of order") == 3 and "'method': 'LoRA'" in told and "Traceback" in told
    again, none = measured(tmp_path, Asked())
    assert len(again) == 5 * 9 and not none


def test_a_method_none_of_whose_tries_succeeds_has_no_cells(tmp_path):
    found, failures = measured(tmp_path, Asked(lambda cell: cell.method == "SaRA"))
    assert {line["method"] for line in found} == set(plan.PAPERS) - {"SaRA"}
    assert len(failures) == 5 and {job.key["style"] for job in failures} == {protocol.TUNING_STYLE}


def test_a_try_that_fails_is_not_the_best(tmp_path):
    middle = protocol.MIDDLE_RATE["SaRA"]
    found, _ = measured(tmp_path, Asked(lambda cell: cell.method == "SaRA" and cell.rate > 2 * middle))
    assert {line["rate"] for line in found if line["method"] == "SaRA"} == {middle}


def test_captions_are_encoded_before_what_needs_them_and_only_once(tmp_path):
    asked, bench = Asked(), Bench("openmoji")
    measured(tmp_path, asked, bench)
    ranks = {called: rank for called, rank, _ in asked.encoded}
    assert set(ranks) == set(plan.styles(TIER)) - {"openmoji"} and bench.made
    assert ranks.pop(protocol.TUNING_STYLE) < table.SEARCH < min(ranks.values()) and max(ranks.values()) < 0


def of_part(tmp_path, asked, processes=2):
    failures = table.Failures()
    asked.processes = processes
    return table.of_part("strength", Bench(), asked, tmp_path / "lines.jsonl", failures), failures


def test_the_jobs_of_a_part_are_measured_at_the_rates_found_for_it(tmp_path):
    asked = Asked()
    found, failures = of_part(tmp_path, asked)
    assert [(line["method"], line["strength"]) for line in found] == [
        (method, strength) for method in ("SaRA", "LoRA") for strength in parts.STRENGTHS
    ]
    assert not failures and {cell.method for _, cell in asked.cells} == {"SaRA", "LoRA"}
    assert asked.rates == {("SaRA", parts.SHARE): 10**0.5 / 1000, ("LoRA", parts.SHARE): 10**0.5 / 1000}
    assert {called for called, *_ in asked.encoded} == {protocol.TUNING_STYLE, parts.STYLE}
    assert {*parts.RATED} == {*parts.STYLED} == {*parts.PARTS}


def test_what_came_out_on_top_is_measured_budget_by_budget_beside_the_table_s_own_cells(tmp_path):
    whole, asked = Asked(), Asked()
    asked.processes = 2
    measured(tmp_path, whole, tier="T2")
    found = table.of_better("T2", Bench(), asked, tmp_path / "lines.jsonl", table.Failures())
    per_budget = len(better.BETTER) * 9
    assert [line["share"] for line in found] == [protocol.BUDGETS[0]] * per_budget + [protocol.BUDGETS[2]] * per_budget
    # Nothing that is there already is measured again, and nothing has a rate of its own.
    assert len(asked.cells) == 2 * (per_budget - 2 * 9) and all(cell.options for _, cell in asked.cells)
    of_table = {(cell.method, cell.share): cell.rate for rank, cell in whole.cells if rank >= 0}
    assert all(line["rate"] == of_table[line["method"], line["share"]] for line in found)
    shown = tables.of_part("better", found)
    for share in ("0.58%", "5.80%"):
        assert f"{share} of the weights" in shown
    for name in better.BETTER:
        others = [other for other in ("LoRA", "SaRA") if other != name]
        assert all(shown.count(f"| {name} − {other} |") == 2 for other in others), name


def test_a_part_without_a_rate_has_no_lines(tmp_path, capsys):
    found, failures = of_part(tmp_path, Asked(lambda cell: cell.method == "LoRA"), processes=1)
    assert found == [] and len(failures) == 5 and "no learning rate of LoRA" in capsys.readouterr().err


class Process:
    """In a process's place: runs what it is given, in a thread of the workers. broken: what it cannot"""

    made = 0

    def __init__(self):
        type(self).made += 1

    def submit(self, function, *arguments):
        function(*arguments)
        return self

    def result(self):
        return "done"

    def shutdown(self, wait=True):
        pass


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(Process, "made", 0)
    monkeypatch.setattr(Workers, "_new_process", lambda self: Process())

    class Like:
        work = settings = judged = device = None

    with Workers(1, 1, None, Like()) as made:
        yield made


def test_a_process_in_which_something_failed_is_replaced(pool, monkeypatch):
    def fail(cell):
        raise MemoryError

    monkeypatch.setattr(workers, "_measured", fail)
    job = pool.job(protocol.Cell("SaRA", 0.1, "noto", 0, 1e-3))
    with pytest.raises(MemoryError):
        job.measure()
    monkeypatch.setattr(workers, "_measured", lambda cell: None)
    assert job.measure() == "done" and Process.made == 2


def test_the_lowest_rank_comes_first(pool, monkeypatch):
    order, begun, go = [], threading.Event(), threading.Event()

    def measure(cell):
        begun.set()
        assert go.wait(20)
        order.append(cell.seed)

    monkeypatch.setattr(workers, "_measured", measure)
    monkeypatch.setattr(workers, "_encoded", lambda captions: order.append(captions))
    said = []

    def start(seed, rank):
        job = pool.job(protocol.Cell("SaRA", 0.1, "noto", seed, 1e-3), rank)
        threads.append(threading.Thread(target=job.measure))
        threads[-1].start()

    threads = []
    start(0, 0)
    assert begun.wait(20)
    start(1, 5)
    start(2, 1)
    pool.encode(["a", "b"], -1, "noto", said.append)
    while pool._asked.qsize() < 3:
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert order == [0, ["a", "b"], 2, 1] and said == ["captions of noto: 0 of 2 left to encode"]


def test_what_has_not_begun_is_not_begun_after_a_stop(pool):
    pool.stop()
    with pytest.raises(CancelledError):
        pool.job(protocol.Cell("SaRA", 0.1, "noto", 0, 1e-3)).measure()
