"""The trainings that the page can follow: GET /sara/runs, the event "sara.run", and what the page asks of a run.

Of this server's runs the last MOST_RUNS are remembered, after their end too. An event goes to all pages, each of which
shows it only where the run is its own.
"""

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import comfy.model_management
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ....sara_core.errors import SaRAError, TrainingError
from ....sara_core.wording import Sentence
from .pulse import Pulse
from .routes import on_get, on_post
from .run_state import MOST_POINTS_KEPT, RunState, sentence

EVENT = "sara.run"
MOST_RUNS = 20
SECONDS_BETWEEN_EVENTS = 0.25
REQUESTS = ("save", "sample", "finish")

_runs: dict[str, "LiveRun"] = {}
# Clients whose page has loaded what shows runs.
_pages: deque[str] = deque(maxlen=100)


class LiveRun:
    """One run: its state, to be changed through `tell` only, and what was asked of it since it last looked."""

    def __init__(self, state: RunState):
        self.state = state
        self._lock = threading.RLock()
        self._sent = (0, 0)
        self._requests: set[str] = set()
        self._pulse = Pulse(self._send, SECONDS_BETWEEN_EVENTS)

    def tell(self, **changes) -> None:
        """Set fields of the state, and let the pages know before long; of a run's end, at once."""
        with self._lock:
            for name, value in changes.items():
                setattr(self.state, name, value)
        if self.state.is_over:
            self._pulse.now()
        else:
            self._pulse.want()

    def doing(self, key: str, **values) -> None:
        """What is done just now, as `sentence`."""
        self.tell(message=sentence(key, **values))

    def is_shown(self) -> bool:
        """Whether the page that has queued the prompt shows it: other pages have no use for it."""
        return getattr(getattr(PromptServer, "instance", None), "client_id", None) in _pages

    def add_loss(self, step: int, loss: float) -> None:
        with self._lock:
            self.state.losses.add(step, loss)

    def add_held_out(self, step: int, loss: float) -> None:
        with self._lock:
            self.state.held_out.add(step, loss)

    def whole(self) -> dict:
        with self._lock:
            return self.state.whole()

    def kept(self) -> dict:
        """What the node keeps of it, with the results of its workflow."""
        with self._lock:
            return self.state.whole(MOST_POINTS_KEPT)

    def request(self, wanted: str) -> None:
        """To be done within a step. Raises TrainingError if the run is over, or draws no pictures."""
        with self._lock:
            if self.state.is_over:
                raise TrainingError(Sentence("This training is over."))
            if wanted == "sample" and self.state.samples is None:
                raise TrainingError(
                    Sentence("This training draws no pictures: connect SaRA Train Samples before the next one.")
                )
            self._requests.add(wanted)

    def was_asked_to(self, wanted: str) -> bool:
        """Whether something was requested since this was last asked."""
        with self._lock:
            is_wanted = wanted in self._requests
            self._requests.discard(wanted)
            return is_wanted

    def _send(self) -> None:
        server = getattr(PromptServer, "instance", None)  # absent where nodes are called without a server
        if server is None:
            return
        with self._lock:
            news = self.state.since(*self._sent)
            self._sent = len(self.state.losses.points), len(self.state.held_out.points)
        server.send_sync(EVENT, news)


@contextmanager
def followed(node_class) -> Iterator[LiveRun]:
    """A run of the node that is running, from here to its end, which it need not tell itself if it is an error or the
    user's Cancel.

    node_class: the class as executed, with its hidden inputs unique_id and extra_pnginfo
    """
    run = LiveRun(RunState(uuid.uuid4().hex, _prompt(), _node(node_class), _workflow(node_class)))
    _runs[run.state.run] = run
    for old in list(_runs)[:-MOST_RUNS]:
        _runs.pop(old, None)
    try:
        yield run
    except BaseException as error:
        if not run.state.is_over:
            run.tell(**_ended_by(error))
        raise
    finally:
        if not run.state.is_over:
            run.tell(phase="finished", message=None)


def _ended_by(error: BaseException) -> dict:
    """What to tell of a run that has not begun when it ended."""
    kind, said = how_it_ended(error)
    return {
        "phase": kind, "message": None,
        "end": {
            "kind": kind, "sentences": [sentence(said or "Stopped before the first step was done.")],
            "delta": None, "snapshot": None, "seconds": None, "loss": None, "trained": None, "error": said,
        },
    }  # fmt: skip


def change_ends(changed: Callable[[dict], dict]) -> None:
    """Let something that came to pass after the runs' ends be told with them: state.end → the same, or another."""
    for run in list(_runs.values()):
        end = run.state.end
        if end is not None and (new := changed(end)) is not end:
            run.tell(end=new)


def how_it_ended(error: BaseException) -> tuple[str, str | None]:
    """("stopped", None) for the user's Cancel; ("failed", what went wrong, for people) for every other error."""
    if isinstance(error, comfy.model_management.InterruptProcessingException):
        return "stopped", None
    return "failed", error.said if isinstance(error, SaRAError) else f"{type(error).__name__}: {error}"


def register_runs() -> None:
    """Give the page its addresses."""
    on_get("runs", _list)
    on_get("runs/{run}", lambda asked: _run(asked).whole())
    for wanted in REQUESTS:
        on_post(f"runs/{{run}}/{wanted}", lambda asked, wanted=wanted: _requested(asked, wanted))


def _list(asked: Mapping) -> dict:
    """The newest run of each node of a workflow; without one, all that are remembered, the newest first."""
    client = asked.get("client")
    if client and client not in _pages:
        _pages.append(client)
    found = [run.whole() for run in reversed(list(_runs.values()))]
    if "workflow" in asked:
        newest = {}
        for state in found:
            if state["workflow"] == asked["workflow"]:
                newest.setdefault(state["node"], state)
        found = list(newest.values())
    return {"runs": found}


def _run(asked: Mapping) -> LiveRun:
    run = _runs.get(asked["run"])
    if run is None:
        raise TrainingError(Sentence("This training is not remembered any more."))
    return run


def _requested(asked: Mapping, wanted: str) -> dict:
    _run(asked).request(wanted)
    return {"accepted": True}


def _prompt() -> str | None:
    context = get_executing_context()
    return context and context.prompt_id


def _node(node_class) -> str | None:
    node = getattr(node_class.hidden, "unique_id", None)
    return None if node is None else str(node)


def _workflow(node_class) -> str | None:
    """What a page calls the workflow; prompts from elsewhere have none."""
    found = getattr(node_class.hidden, "extra_pnginfo", None)
    for name in ("workflow", "id"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else None
