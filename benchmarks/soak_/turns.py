"""One turn after another: an action, disturbed, and then every promise checked."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from . import actions, faults, prompts
from .judge import Judge, resumed
from .outcome import DONE, attempt
from .plan import NOTHING, Turn
from .promises import Promises
from .site import Site
from .small_disk import SIZE

# Fewer of each are not deleted: the actions take from them.
_LEFT_IN_PEACE = {"sara/trained": 3, "checkpoints": 1}


@dataclass
class Report:
    """actions and faults: how often each ran; endings: of all prompts; resumed: trainings that went on from a snapshot
    to their end; said: by prompts that did not end well; violations: turn, action, fault and what is broken"""

    actions: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    endings: Counter = field(default_factory=Counter)
    resumed: int = 0
    said: Counter = field(default_factory=Counter)
    violations: list[dict] = field(default_factory=list)
    turns: int = 0

    def violated(self, turn: int, action: str, fault: str, broken: list[str], say: Callable[[str], None]) -> None:
        """Add what is broken after a turn, and say it now."""
        for text in broken:
            self.violations.append({"turn": turn, "action": action, "fault": fault, "broken": text})
            say(f"VIOLATION in turn {turn} ({action}; {fault}): {text}")


def first_files(site: Site, judge: Judge, report: Report, say: Callable[[str], None]) -> None:
    """Turn 0, what the actions take from: deltas of two recipes, a baked checkpoint, a snapshot.

    Raises SystemExit if they cannot be made.
    """
    client, choose = site.server.client, random.Random(0)
    outcomes = [attempt(client, prompts.training(site, seed, "sara/trained")) for seed in list(prompts.RECIPES)[:2]]
    outcomes.append(attempt(client, prompts.baking(site, choose)))
    if failed := [outcome.message for outcome in outcomes if outcome.kind != DONE]:
        raise SystemExit("The first files could not be made:\n" + "\n".join([*failed, site.server.log()]))
    outcomes.append(actions.cancelled(site, client, min(prompts.RECIPES), at=2))
    broken = judge.judge(outcomes, faults.Disturbance({faults.INTERRUPTED}), time.time())
    report.violated(0, "the first files", NOTHING, broken, say)


def take(turn: Turn, site: Site, judge: Judge, report: Report, say: Callable[[str], None]) -> None:
    """One turn, added to the report."""
    began, choose = time.time(), turn.choose
    fault = faults.EVERY_FAULT[turn.fault]
    with fault(site, random.Random(choose.random())) as disturbance:
        outcomes = actions.ACTIONS[turn.action](site, site.server.client, random.Random(choose.random()))
    disturbance.excuses |= ACTION_EXCUSES.get(turn.action, set())
    broken = judge.judge(outcomes, disturbance, began)
    everybodys = [*outcomes, *disturbance.beside, *disturbance.second]
    endings = Counter(outcome.kind for outcome in everybodys)
    report.turns += 1
    report.actions[turn.action] += 1
    report.faults[turn.fault] += 1
    report.endings += endings
    report.resumed += len(resumed(outcome for outcome in outcomes if outcome.kind == DONE))
    report.said += Counter(outcome.message for outcome in everybodys if outcome.message)
    say(f"{turn.number}: {turn.action}, {turn.fault}: " + ", ".join(f"{n} {kind}" for kind, n in endings.items()))
    report.violated(turn.number, turn.action, turn.fault, broken, say)
    make_room(site, judge.promises)


ACTION_EXCUSES = {"cancel": {faults.INTERRUPTED}, "take odd files": {faults.ODD}}


def make_room(site: Site, promises: Promises) -> None:
    """As a person does: delete the oldest files when half of the disk is used."""
    files = [path for path in site.output.rglob("*.safetensors") if path.is_file() and not path.is_symlink()]
    sizes = {path: path.stat().st_size for path in sorted(files, key=lambda path: path.stat().st_mtime)}
    names = {path: path.relative_to(site.output).as_posix() for path in sizes}
    used = sum(sizes.values())
    for path, size in sizes.items():
        if used < SIZE // 2:
            return
        beginning = next((b for b in _LEFT_IN_PEACE if names[path].startswith(b)), None)
        if beginning and sum(name.startswith(beginning) for name in names.values()) <= _LEFT_IN_PEACE[beginning]:
            continue
        path.unlink()
        promises.take_back([names.pop(path)])
        used -= size
