"""Every promise, checked after each turn."""

import time
from collections.abc import Iterable


from . import prompts, resources, watched_model
from .faults import INTERRUPTED, KILLED, NO_ROOM, ODD, Disturbance
from .outcome import DONE, FAILED, HUNG, LONGEST_SECONDS, REFUSED, UNANSWERED, Outcome, attempt
from .outcome import INTERRUPTED as WAS_INTERRUPTED
from .promises import SNAPSHOTS, Promises, digest, told_in, unsaved_in
from .resources import FolderWatch, ProcessWatch
from .site import Site
from .whole_files import WholeFiles, contents

NODES = ("SaRATrain", "SaRALoader", "SaRABake", "SaRAConvert", "SaRAExtract")
# Of these a turn with no room may fail: what they save does not fit.
_ROOM_WORDS = ("could not be saved", "cannot be made", "cannot be used", "some space there")
_FATAL = "Fatal Python error"
_EXCUSE = {WAS_INTERRUPTED: INTERRUPTED, UNANSWERED: KILLED, REFUSED: ODD, FAILED: ODD}


def unexplained(outcome: Outcome, excuses: set[str]) -> str:
    """Why a prompt should not have ended as it did; empty if it may."""
    said = f"{outcome.kind}: {outcome.error} {outcome.message}"
    if outcome.kind == HUNG or not outcome.is_in_words:
        return said
    if outcome.kind == DONE or _EXCUSE[outcome.kind] in excuses:
        return ""
    is_for_room = outcome.kind == FAILED and any(words in outcome.message for words in _ROOM_WORDS)
    return "" if is_for_room and NO_ROOM in excuses else said


class Judge:
    """Keeps what was promised, and says what is broken."""

    def __init__(self, site: Site):
        self.site, self.promises, self.files = site, Promises(site.output), WholeFiles(site.output)
        self.temporary, self.pictures = FolderWatch(site.temporary), FolderWatch(site.base / "temp")
        self.first: dict[str, str] = {}
        self._last: dict[str, str] = {}
        self.watches: list[ProcessWatch] = []
        self._life, self._watch = 0, ProcessWatch(site.output)

    def judge(self, outcomes: list[Outcome], disturbance: Disturbance, began: float) -> list[str]:
        """What is broken after a turn that began at a time (time.time)."""
        before, own = f"server {self._life}", [*outcomes, *disturbance.beside]
        wrong = self._come_to_rest()
        wrong += [f"ended without a reason, {text}" for outcome in [*own, *disturbance.second]
                 if (text := unexplained(outcome, disturbance.excuses))]  # fmt: skip
        self._take_back_what_was_resumed(outcomes)
        wrong += self._new_promises(own, self.site.new_log(), before)
        wrong += self._new_promises(disturbance.second, disturbance.second_log, "the second server")
        self.promises.life_ended("the second server")
        if self.site.lives != self._life:
            wrong += self._killed(before, outcomes, disturbance.excuses, began)
        return [*wrong, *self.promises.broken(), *self.files.wrong(), *self._answers(), *self._resources(own)]

    def _come_to_rest(self) -> list[str]:
        """Wait until nothing runs or waits any more; a server that is gone or does not come to rest is replaced."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while self.site.server.is_running and time.monotonic() < deadline:
            try:
                if not self.site.server.client.remaining():
                    return []
            except OSError:
                pass  # it may have ended just now
            time.sleep(0.1)
        how = "does not come to rest" if self.site.server.is_running else "has ended by itself"
        said = self.site.server.log()
        fatal = said.find(_FATAL)  # where it was, if it had the time to say so
        said = said[fatal:][:2000] if fatal >= 0 else said[-2000:]
        self.site.kill()
        self.site.start()
        return [f"the server {how}; it said last:\n{said}"]

    def _take_back_what_was_resumed(self, outcomes: Iterable[Outcome]) -> None:
        for name in resumed(outcomes):
            self.promises.resumed(name)

    def _new_promises(self, outcomes: list[Outcome], log: str, life: str) -> list[str]:
        wrong, trained = [], [outcome for outcome in outcomes if outcome.nodes("SaRATrain")]
        copies = unsaved_in(log)
        began = [outcome for outcome in trained if outcome.steps_seen() and outcome.kind != UNANSWERED]
        if told_in(log) < len(began):
            wrong.append(f"of {len(began)} trainings only {told_in(log)} told where what they trained is")
        saved = [outcome for outcome in trained if outcome.kind == DONE and outcome.nodes("SaRASave")]
        wrong += self.promises.keep_what_the_log_tells(log, life, saved=0 < len(copies) <= len(saved))
        for outcome in outcomes:
            for name in outcome.saved:
                wrong += self.promises.keep(name, "reported as saved")
        for outcome in saved:
            wrong += self._same_values(outcome, outcome.saved[0])
        if len(trained) == 1 and not saved:
            for name in copies:
                wrong += self._same_values(trained[0], name)
        return wrong

    def _same_values(self, outcome: Outcome, name: str) -> list[str]:
        """A recipe gives the same bits each time, resumed or not: the model was the same, the run went on exactly."""
        (inputs,) = outcome.nodes("SaRATrain").values()
        path = self.site.output / name
        return self._as_first(f"what recipe {inputs['seed']} trains", contents(path)) if path.is_file() else []

    def _as_first(self, what: str, found: str) -> list[str]:
        """Told once, until it changes again."""
        is_new = self._last.get(what) != found
        self._last[what] = found
        return [f"{what} has changed"] if self.first.setdefault(what, found) != found and is_new else []

    def _killed(self, before: str, outcomes: list[Outcome], excuses: set[str], began: float) -> list[str]:
        """What a killed server leaves stays; what it had done by then is there."""
        self._life, self._watch = self.site.lives, ProcessWatch(self.site.output)
        self.watches.append(self._watch)
        self.promises.life_ended(before)
        self.files.server_was_killed()
        self.pictures.know_all()
        wrong = []
        steps = max((outcome.steps_seen() for outcome in outcomes if outcome.kind == UNANSWERED), default=0)
        if steps > prompts.SNAPSHOT_EVERY and not self._left_since(began):
            wrong.append(f"a training that was killed after {steps} steps left nothing")
        for name in self.site.snapshots():
            wrong += self.promises.keep(f"{SNAPSHOTS}/{name}", "left by a killed run")
        for path in (self.site.output / "sara" / "unsaved").glob("run_*.safetensors"):
            wrong += self.promises.keep(path.relative_to(self.site.output).as_posix(), "left by a killed server")
        return wrong

    def _left_since(self, began: float) -> bool:
        """Whether there is anything of a training of this turn: a snapshot, a copy, or the saved delta."""
        folders = (self.site.output / name for name in (SNAPSHOTS, "sara", "sara/unsaved"))
        found = (path for folder in folders for path in folder.glob("*.safetensors"))
        # The clock of files is coarser than that of programs.
        return any(path.is_file() and path.stat().st_mtime > began - 1 for path in found)

    def _answers(self) -> list[str]:
        """The server answers, offers its nodes, and has the very model that it had."""
        client = self.site.server.client
        try:
            wrong = [f"{name} is gone" for name in NODES if name not in client.object_info(name)]
        except OSError as error:
            return [f"the server does not tell of its nodes: {error}"]
        for path in self.site.models():
            wrong += self._as_first(f"the file {path.name}", digest(path))
        outcome = attempt(client, watched_model.watching(self.site.checkpoint.name))
        if outcome.kind != DONE:
            return [*wrong, f"the model cannot be drawn with: {outcome.kind} {outcome.error} {outcome.message}"]
        self._know_pictures([outcome])
        for what, found in watched_model.digests(client, outcome.outputs).items():
            wrong += self._as_first(what, found)
        return wrong

    def _resources(self, outcomes: list[Outcome]) -> list[str]:
        self._know_pictures(outcomes)
        if any(outcome.kind != DONE for outcome in outcomes):
            self.pictures.know_all()
        reading = resources.read(self.site.server.pid)
        wrong = [] if reading is None else self._watch.wrong(reading)
        return [*wrong, *self.temporary.wrong(), *self.pictures.wrong()]

    def _know_pictures(self, outcomes: Iterable[Outcome]) -> None:
        """Previews that were shown may stay until ComfyUI clears its folder, when it starts."""
        pictures = (
            picture
            for outcome in outcomes
            for output in outcome.outputs.values()
            for picture in output.get("images", [])
        )
        self.pictures.know({picture["filename"] for picture in pictures})

    def begin(self) -> list[str]:
        """The first look, after the first server has started: with what is everything compared later?"""
        self._life = self.site.lives
        self.watches.append(self._watch)
        self.temporary.know_all()
        return self._answers()


def resumed(outcomes: Iterable[Outcome]) -> list[str]:
    """The snapshots from which trainings were to go on."""
    return [
        inputs["resume"] for outcome in outcomes for inputs in outcome.nodes("SaRATrain").values()
        if inputs["resume"] != "none"
    ]  # fmt: skip
