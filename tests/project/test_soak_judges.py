"""The judges of `python dev.py bench soak`: each sees what it is there for, planted on a fake site."""

import io
import mmap
import os
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks.soak_ import resources
from benchmarks.soak_.faults import INTERRUPTED, KILLED, NO_ROOM, ODD, Disturbance
from benchmarks.soak_.judge import NODES, Judge, unexplained
from benchmarks.soak_.outcome import DONE, FAILED, HUNG, REFUSED, UNANSWERED, Outcome
from benchmarks.soak_.outcome import INTERRUPTED as WAS_INTERRUPTED
from benchmarks.soak_.promises import Promises
from benchmarks.soak_.resources import FolderWatch, ProcessWatch, Reading
from benchmarks.soak_.watched_model import NODE
from sara_core import SparseDelta
from sara_core.delta import SparseEntry

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
OWN_ERROR = "custom_nodes.sara_core.errors.DeltaError"


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


LAST_WORDS = "its last words"


class FakeClient:
    def __init__(self):
        self.weights, self.pixel, self.nodes = "digest", 7, set(NODES)

    def remaining(self):
        return 0

    def object_info(self, name):
        return {name: {}} if name in self.nodes else {}

    def run(self, prompt, on_progress, limit):
        return {"digest": {"text": [self.weights]}, "show": {"images": [{"filename": "shown.png"}]}}

    def view(self, file):
        return png(self.pixel)


class FakeSite:
    """A site without a server; its process is this one."""

    def __init__(self, base):
        self.base, self.output, self.temporary = base, base / "output", base / "tmp"
        self.checkpoint, self.lives, self.said, self.has_small_disk = Path("model.safetensors"), 1, "", True
        for folder in ("output/sara/unsaved", "output/sara_snapshots", "output/checkpoints", "tmp", "temp"):
            (base / folder).mkdir(parents=True)
        (base / "model.safetensors").write_bytes(b"weights")
        self.server = SimpleNamespace(client=FakeClient(), is_running=True, pid=os.getpid(), log=lambda: LAST_WORDS)

    def models(self):
        return [self.base / "model.safetensors"]

    def new_log(self):
        said, self.said = self.said, ""
        return said

    def snapshots(self):
        return [path.name for path in (self.output / "sara_snapshots").glob("run_*")]

    def kill(self):
        pass

    def start(self):
        self.lives += 1
        self.server.is_running = True


def delta_file(path, value=1.0):
    entry = SparseEntry(torch.tensor([1, 5], dtype=torch.int32), torch.tensor([value, -2.0]), (4, 4))
    SparseDelta({"diffusion_model.a.weight": entry}).save(path)
    return path


@pytest.fixture
def site(tmp_path):
    return FakeSite(tmp_path)


@pytest.fixture
def judge(site):
    judge = Judge(site)
    assert judge.begin() == []
    return judge


def training(name=None, kind=DONE, seed=101, resume="none", seen=0):
    """The outcome of a training, saved under a name or not."""
    nodes = {"train": {"class_type": "SaRATrain", "inputs": {"seed": seed, "resume": resume}}}
    if name is not None:
        nodes["save"] = {"class_type": "SaRASave", "inputs": {}}
    outputs = {"save": {"text": [name]}} if name is not None and kind == DONE else {}
    return Outcome(nodes, kind, outputs=outputs, seen={"train": seen})


def judged(judge, *outcomes, excuses=(), began=None):
    return judge.judge(list(outcomes), Disturbance(set(excuses)), time.time() if began is None else began)


def saved(judge, site, name="sara/trained_00001_.safetensors", value=1.0):
    """A training of the fake server that was saved, and found to be in order."""
    path = delta_file(site.output / name, value)
    assert judged(judge, training(name)) == []
    return path


def test_in_order_nothing_is_broken(judge, site):
    saved(judge, site)
    assert judged(judge) == [] and len(judge.promises) == 1


def vanish(site, path):
    path.unlink()


def change_a_value(site, path):
    delta_file(path, value=1.5)


def cut_short(site, path):
    path.write_bytes(path.read_bytes()[:-3])


def cut_another(site, path):
    (site.output / "checkpoints" / "baked.safetensors").write_bytes(path.read_bytes()[:-3])


def leave_half_written(site, path):
    path.with_name(f".{path.name}.tmp").write_bytes(b"half")


def leave_a_mark(site, path):
    (site.output / "sara_snapshots" / ".run_00001.lock").touch()


def leave_an_empty_picture(site, path):
    (site.output / "picture.png").touch()


def leave_a_temporary_file(site, path):
    (site.temporary / "tmpabc").touch()


def leave_a_preview(site, path):
    (site.base / "temp" / "nobody_asked.png").touch()


def change_a_bit_of_the_model(site, path):
    site.server.client.weights = "another digest"


def change_a_pixel(site, path):
    site.server.client.pixel += 1


def change_a_model_file(site, path):
    site.models()[0].write_bytes(b"weighty")


def lose_a_node(site, path):
    site.server.client.nodes.discard("SaRATrain")


def die(site, path):
    site.server.is_running = False


@pytest.mark.parametrize("plant, broken", [
    (vanish, "trained_00001_.safetensors (reported as saved) has vanished"),
    (change_a_value, "trained_00001_.safetensors (reported as saved) has changed"),
    (cut_short, "trained_00001_.safetensors cannot be read"), (cut_another, "baked.safetensors cannot be read"),
    (leave_half_written, ".trained_00001_.safetensors.tmp is left over"),
    (leave_a_mark, ".run_00001.lock is left over"), (leave_an_empty_picture, "picture.png is empty"),
    (leave_a_temporary_file, "tmpabc is left in tmp"), (leave_a_preview, "nobody_asked.png is left in temp"),
    (change_a_bit_of_the_model, "the weights in memory has changed"),
    (change_a_pixel, "the picture without a delta has changed"), (lose_a_node, "SaRATrain is gone"),
    (change_a_model_file, "the file model.safetensors has changed"),
    (die, "the server has ended by itself; it said last:\n" + LAST_WORDS),
])  # fmt: skip
def test_what_is_broken_is_seen(judge, site, plant, broken):
    plant(site, saved(judge, site))
    assert any(broken in line for line in judged(judge))
    assert set(judged(judge)) <= {"SaRATrain is gone"}  # of all else once is enough


@LINUX
def test_a_file_that_stays_open_is_seen(judge, site):
    path = saved(judge, site)
    with open(path, "rb"):
        assert f"the server holds {path} open" in judged(judge)
    assert judged(judge) == []


@LINUX
def test_a_file_that_stays_mapped_is_seen(judge, site):
    path = saved(judge, site)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    found = resources.read(os.getpid())
    mapped.close()
    assert str(path) in found.mapped


@LINUX
def test_leaked_descriptors_are_seen(tmp_path):
    watch = ProcessWatch(tmp_path, warm_up=2)
    assert not any(watch.wrong(resources.read(os.getpid())) for _ in range(3))
    leaked = [open(__file__, "rb") for _ in range(resources.MOST_FILES + 1)]
    try:
        (line,) = watch.wrong(resources.read(os.getpid()))
    finally:
        for file in leaked:
            file.close()
    assert "open files after" in line and "test_soak_judges.py" in line


def grown(**more):
    """What a watch says of readings that grow after its warm-up."""
    watch, first = ProcessWatch(Path("output"), warm_up=2), Reading(1000.0, ["a"], 10, [])
    readings = [first] * 3 + [first._replace(**more)] * resources.LAST
    return [line for reading in readings for line in watch.wrong(reading)]


def test_growing_memory_and_threads_are_seen():
    assert grown() == grown(memory=1000.0 + resources.MOST_MEMORY) == grown(threads=10 + resources.MOST_THREADS) == []
    assert grown(memory=1001.0 + resources.MOST_MEMORY) == ["1193 MiB of memory after 1000"]
    assert grown(threads=11 + resources.MOST_THREADS)[0] == "19 threads after 10"


def test_memory_that_comes_and_goes_is_no_growth():
    watch, first = ProcessWatch(Path("output"), warm_up=1), Reading(1000.0, [], 1, [])
    memory = [1000.0, 1000.0, *[3000.0] * (resources.LAST - 1), 1000.0, 3000.0]
    assert not any(watch.wrong(first._replace(memory=value)) for value in memory)


def test_what_was_known_is_told_once(tmp_path):
    watch = FolderWatch(tmp_path)
    (tmp_path / "before").touch()
    watch.know_all()
    (tmp_path / "after").touch()
    assert watch.wrong() == [f"after is left in {tmp_path.name}"] and watch.wrong() == []


COPY = "SaRA: until it is saved, the delta is in output/sara/unsaved/run_00001.safetensors.\n"
LATER = COPY.replace("00001", "00002")
STOPPED = (
    "SaRA: training ended early. What was trained in 3 steps is in output/sara/stopped_run_00001.safetensors. To go on "
    "with it, choose 'run 1, step 3' under resume.\n"
)


def copy_of(site, number=1, value=1.0):
    return delta_file(site.output / "sara" / "unsaved" / f"run_{number:05}.safetensors", value)


@pytest.mark.parametrize("kind", [DONE, WAS_INTERRUPTED, FAILED])
def test_a_training_of_which_nothing_is_told_is_seen(judge, site, kind):
    outcome = training(kind=kind, seen=3)
    outcome.error, outcome.message = OWN_ERROR, ROOM
    (line,) = judged(judge, outcome, excuses={INTERRUPTED, NO_ROOM})
    assert line == "of 1 trainings only 0 told where what they trained is"
    site.said = "SaRA: training ended early. No step was completed, so there is nothing to keep.\n"
    assert judged(judge, outcome, excuses={INTERRUPTED, NO_ROOM}) == []


def test_a_finished_training_that_is_nowhere_is_seen(judge, site):
    site.said = COPY
    (line,) = judged(judge, training())
    assert line == "sara/unsaved/run_00001.safetensors (a finished training, not saved yet) is not there"


def test_a_copy_may_go_with_a_later_training_and_not_before(judge, site):
    copy, site.said = copy_of(site), COPY
    assert judged(judge, training()) == []
    copy.unlink()
    assert "has vanished" in judged(judge)[0]
    copy_of(site, 1)
    site.said = COPY
    assert judged(judge, training()) == []
    copy.unlink()
    copy_of(site, 2)
    site.said = LATER
    assert judged(judge, training()) == []


def test_a_copy_that_a_killed_server_left_may_not_go(judge, site):
    copy, site.said = copy_of(site), COPY
    assert judged(judge, training()) == []
    site.lives += 1
    assert judged(judge) == []
    copy.unlink()
    copy_of(site, 2)
    site.said = LATER
    assert "run_00001.safetensors (left by a killed server) has vanished" in judged(judge, training())[0]


def test_a_copy_that_stays_after_saving_is_seen(judge, site):
    delta_file(site.output / "sara" / "trained_00001_.safetensors")
    copy_of(site)
    site.said = COPY
    (line,) = judged(judge, training("sara/trained_00001_.safetensors"))
    assert "is still there, although the delta has been saved" in line


def test_a_stopped_training_whose_files_are_not_there_is_seen(judge, site):
    site.said = STOPPED
    lines = judged(judge, training(kind=WAS_INTERRUPTED), excuses={INTERRUPTED})
    assert lines == [
        "sara/stopped_run_00001.safetensors (a stopped training) is not there",
        "sara_snapshots/run_00001_step0000003.safetensors (the snapshot to go on from) is not there",
    ]


def test_a_resumed_run_may_remove_its_own_snapshots_only(tmp_path):
    promises = Promises(tmp_path)
    for run in (1, 2):
        path = tmp_path / "sara_snapshots" / f"run_{run:05}_step0000003.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"state")
        assert promises.keep(f"sara_snapshots/{path.name}", "a snapshot") == []
        path.unlink()
    promises.resumed("run_00001_step0000003.safetensors")
    assert promises.broken() == ["sara_snapshots/run_00002_step0000003.safetensors (a snapshot) has vanished"]


def test_a_killed_training_that_left_nothing_is_seen(judge, site):
    site.lives += 1
    killed = training(kind=UNANSWERED, seen=3)
    assert judged(judge, killed, excuses={KILLED}) == ["a training that was killed after 3 steps left nothing"]


def test_a_recipe_that_gives_other_values_is_seen(judge, site):
    saved(judge, site)
    name = "sara/trained_00002_.safetensors"
    delta_file(site.output / name, value=1.25)
    assert judged(judge, training(name)) == ["what recipe 101 trains has changed"]
    assert judged(judge, training(name, seed=102)) == []


ROOM = "SaRASave: 'x' could not be saved: the disk is full. Free some space there"


@pytest.mark.parametrize("outcome, excuses, is_fine", [
    (Outcome({}, DONE), set(), True),
    (Outcome({}, HUNG), {ODD, KILLED, NO_ROOM, INTERRUPTED}, False),
    (Outcome({}, FAILED, "SaRASave: x", "builtins.OSError"), {ODD, NO_ROOM}, False),
    (Outcome({}, FAILED, ROOM, OWN_ERROR), {NO_ROOM}, True), (Outcome({}, FAILED, ROOM, OWN_ERROR), set(), False),
    (Outcome({}, FAILED, "SaRALoader: damaged", OWN_ERROR), {NO_ROOM}, False),
    (Outcome({}, FAILED, "SaRALoader: damaged", OWN_ERROR), {ODD}, True),
    (Outcome({}, REFUSED), {ODD}, True), (Outcome({}, REFUSED), {NO_ROOM, KILLED}, False),
    (Outcome({}, UNANSWERED), {KILLED}, True), (Outcome({}, UNANSWERED), {INTERRUPTED}, False),
    (Outcome({}, WAS_INTERRUPTED), {INTERRUPTED}, True), (Outcome({}, WAS_INTERRUPTED), {KILLED}, False),
])  # fmt: skip
def test_prompts_may_end_badly_only_for_a_reason_and_in_words(outcome, excuses, is_fine):
    assert (unexplained(outcome, excuses) == "") == is_fine


def test_one_bit_of_one_weight_changes_the_digest_of_the_model(tmp_path, monkeypatch):
    management = ModuleType("comfy.model_management")
    management.load_models_gpu = lambda models: None
    comfy = ModuleType("comfy")
    comfy.model_management = management
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    (tmp_path / "node.py").write_text(NODE)
    (node,) = runpy.run_path(str(tmp_path / "node.py"))["NODE_CLASS_MAPPINGS"].values()
    module = torch.nn.Sequential(torch.nn.Linear(3, 3).half(), torch.nn.BatchNorm1d(3))
    model = SimpleNamespace(model=module)
    before = node().digest(model)["ui"]["text"]
    assert node().digest(model)["ui"]["text"] == before
    module[0].weight.data.view(torch.int16)[1, 2] ^= 1
    assert node().digest(model)["ui"]["text"] != before
