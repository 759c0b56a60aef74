"""What disturbs an action while it goes on: one context manager a fault."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from . import actions, odd_files, prompts, small_disk
from .outcome import Outcome, attempt
from .plan import NOTHING
from .site import Site

INTERRUPTED, NO_ROOM, KILLED, ODD = "interrupted", "no room", "killed", "odd"
# kB that are left on the disk: nothing, less than a delta, less than a snapshot, less than a checkpoint.
LEFT = (0, 4, 60, 500, 1200, 3000, 20_000)


@dataclass
class Disturbance:
    """excuses: how prompts of the turn may end, beside well; beside: the outcomes of other people's prompts
    second: the same of people at another server, and that server's log"""

    excuses: set[str] = field(default_factory=set)
    beside: list[Outcome] = field(default_factory=list)
    second: list[Outcome] = field(default_factory=list)
    second_log: str = ""


Fault = Callable[[Site, random.Random], contextlib.AbstractContextManager[Disturbance]]


@contextlib.contextmanager
def nothing(site: Site, choose: random.Random) -> Iterator[Disturbance]:
    yield Disturbance()


@contextlib.contextmanager
def odd_files_about(site: Site, choose: random.Random) -> Iterator[Disturbance]:
    kinds = choose.sample(list(odd_files.MAKERS), 3)
    with odd_files.lying_about(site.base, _sound(site), kinds):
        yield Disturbance()


@contextlib.contextmanager
def files_coming_and_going(site: Site, choose: random.Random) -> Iterator[Disturbance]:
    with odd_files.coming_and_going(site.base, _sound(site), choose):
        yield Disturbance()


@contextlib.contextmanager
def no_room(site: Site, choose: random.Random) -> Iterator[Disturbance]:
    """A full disk, or where there is no small one, folders that take no more names."""
    left = choose.choice(LEFT) * 1024 + choose.randrange(1024)
    full = small_disk.filled(site.output, left) if site.has_small_disk else small_disk.read_only(site.output)
    with full:
        yield Disturbance({NO_ROOM})


@contextlib.contextmanager
def kill(site: Site, choose: random.Random) -> Iterator[Disturbance]:
    """The server is killed at some moment, and started again afterwards."""
    wait = choose.uniform(0.1, 3.0)

    def work() -> None:
        time.sleep(wait)
        site.kill()

    with _beside(work):
        yield Disturbance({KILLED})
    # What the turn leaves is looked at after the new start, which removes nothing of it.
    site.start()


@contextlib.contextmanager
def second_server(site: Site, choose: random.Random) -> Iterator[Disturbance]:
    """Another server trains into the same folders."""
    seeds = [choose.choice(list(prompts.RECIPES)) for _ in range(2)]
    with site.second_server() as server:
        disturbance = Disturbance()

        def work() -> None:
            for seed in seeds:
                disturbance.second.append(attempt(server.client, prompts.training(site, seed, "sara/trained")))

        with _beside(work):
            yield disturbance
        disturbance.second_log = server.log()


@contextlib.contextmanager
def second_client(site: Site, choose: random.Random) -> Iterator[Disturbance]:
    """Somebody else draws and merges at the same server."""
    disturbance, client = Disturbance(), site.new_client()

    def work() -> None:
        for action in (actions.draw, actions.merge):
            disturbance.beside.extend(action(site, client, choose))

    with _beside(work):
        yield disturbance


def _meanwhile(request: str, excuses: set[str], pause: tuple[float, float]) -> Fault:
    """Somebody else presses the same button again and again."""

    @contextlib.contextmanager
    def fault(site: Site, choose: random.Random) -> Iterator[Disturbance]:
        disturbance, client, ended = Disturbance(set(excuses)), site.new_client(), threading.Event()

        def work() -> None:
            while not ended.wait(choose.uniform(*pause)):
                disturbance.beside.extend(actions.ACTIONS[request](site, client, choose))

        with _beside(work, ended):
            yield disturbance

    return fault


FAULTS: dict[str, Fault] = {
    "odd files about": odd_files_about, "files coming and going": files_coming_and_going, "no room": no_room,
    "little room": no_room, "kill": kill, "second server": second_server, "second client": second_client,
    "free meanwhile": _meanwhile("free", set(), (0.1, 0.6)),
    "interrupt meanwhile": _meanwhile("interrupt", {INTERRUPTED}, (0.3, 3.0)),
    "list meanwhile": _meanwhile("list nodes", set(), (0.05, 0.3)),
}  # fmt: skip
EVERY_FAULT = {NOTHING: nothing, **FAULTS}


def _sound(site: Site) -> bytes:
    return (site.output / "sara" / site.deltas()[0]).read_bytes()


@contextlib.contextmanager
def _beside(work: Callable[[], None], ended: threading.Event | None = None) -> Iterator[None]:
    """Work in a thread of its own, which is waited for; what it raises is raised."""
    raised = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    try:
        yield
    finally:
        if ended is not None:
            ended.set()
        thread.join()
    if raised:
        raise raised[0]
