"""Of a run's snapshots the last few are kept, and nothing goes that the run has not written; its name is its own."""

import errno
import itertools
import os
import signal

import pytest

from sara_core.errors import DeltaError
from sara_core.files import run_name
from sara_core.files.run_name import numbered, reserved
from sara_core.training.snapshot import RunSnapshots, run_of


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def saved(folder, run, *steps, keep=1):
    snapshots = RunSnapshots(folder, run, keep)
    for step in steps:
        snapshots.save(step, {"step": step}, {})
    return snapshots


LEFT_ALONE = [
    "run_00001_step0000500 before the cat pictures.safetensors", "run_00001_step.safetensors",
    "run_00001_step500.safetensors", "run_00001_step00000500.safetensors", "run_00001_step0000500.safetensors.bak",
    "run_00001_step_by_step.safetensors", "run_00001_step0000001_step0000002.safetensors",
    "run_000010_step0000001.safetensors", "run_00001_step٠٠٠٠٥٠٠.safetensors", "a run_00001_step0000001.safetensors",
]  # fmt: skip


def test_only_what_a_run_wrote_goes(tmp_path):
    for name in LEFT_ALONE:
        (tmp_path / name).write_bytes(b"mine")
    snapshots = saved(tmp_path, "run_00001", 1, 2, 3)
    assert set(names(tmp_path)) == {*LEFT_ALONE, "run_00001_step0000003.safetensors"}
    snapshots.discard()
    assert set(names(tmp_path)) == set(LEFT_ALONE)


def test_a_run_whose_name_begins_like_anothers(tmp_path):
    (tmp_path / "portrait_step_by_step.safetensors").write_bytes(b"mine")
    saved(tmp_path, "portrait_step0000001", 5)
    saved(tmp_path, "portrait", 9).discard()
    assert names(tmp_path) == ["portrait_step0000001_step0000005.safetensors", "portrait_step_by_step.safetensors"]
    saved(tmp_path, "[p]*", 9).discard()
    assert len(names(tmp_path)) == 2


def test_the_one_just_written_stays_when_fewer_are_kept_after_resuming(tmp_path):
    saved(tmp_path, "run", 100, 200, 300, 400, keep=9)
    saved(tmp_path, "run", 250, keep=1)  # resumed from 200
    assert names(tmp_path) == [f"run_step0000{step}.safetensors" for step in (250, 300, 400)]
    saved(tmp_path, "run", 450, keep=1)
    assert names(tmp_path) == ["run_step0000450.safetensors"]


def test_a_snapshot_that_cannot_be_written_removes_none(tmp_path):
    snapshots = saved(tmp_path, "run", 1)
    (tmp_path / "run_step0000002.safetensors").mkdir()
    with pytest.raises(Exception, match="name of a folder"):
        snapshots.save(2, {}, {})
    assert names(tmp_path) == ["run_step0000001.safetensors", "run_step0000002.safetensors"]


def test_a_folder_that_cannot_be_made_is_said_with_its_own_reason(tmp_path, monkeypatch):
    def mkdir(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    with pytest.raises(DeltaError, match="the disk is read-only. Choose another folder"):
        RunSnapshots(tmp_path / "new", "run", 1).save(1, {}, {})


def test_steps_of_more_digits_are_later(tmp_path):
    saved(tmp_path, "run", 9_999_999, 10_000_000)
    assert names(tmp_path) == ["run_step10000000.safetensors"]


def test_the_run_of_a_snapshot():
    assert run_of("x/run_00001_step0000500.safetensors") == "run_00001"
    assert run_of("a_step_b_step0000500.safetensors") == "a_step_b"
    assert [run_of(name) for name in LEFT_ALONE[:4]] == [None] * 4
    assert [run_of(f"x/{run}_step0000002.safetensors") for run in ("..", ".", ".x")] == [None] * 3


def test_a_run_with_a_dot_at_the_beginning_knows_its_own(tmp_path):
    saved(tmp_path, ".x", 1, 2).discard()
    assert names(tmp_path) == []


def test_there_is_one_before_the_last_step(tmp_path):
    """So that one is on the disk while the finished delta is written."""

    def due(steps, every):
        snapshots = RunSnapshots(tmp_path, f"{steps} {every}", 1)
        return [step for step in range(1, steps + 1) if snapshots.is_due(step, steps, every)
                and snapshots.save(step, {}, {})]  # fmt: skip

    assert due(7, 3) == [3, 6] and due(8, 3) == [3, 6] and due(6, 3) == [3]
    assert due(5, 500) == [4] and due(1, 500) == [] and due(5, 0) == []


def new_names():
    return map("run_{}".format, itertools.count(1))


def reserve(folder, resumed=None, taken=()):
    return reserved(folder, resumed, new_names(), lambda name: name in taken)


def test_living_runs_have_names_of_their_own_and_leave_nothing(tmp_path):
    with reserve(tmp_path) as first, reserve(tmp_path, taken=["run_2"]) as second, reserve(tmp_path) as third:
        assert [first, second, third] == ["run_1", "run_3", "run_2"]
    with reserve(tmp_path / "new") as again:
        assert again == "run_1"
    assert names(tmp_path) == ["new"] and names(tmp_path / "new") == []


def test_a_run_that_lives_is_not_resumed_under_its_name(tmp_path):
    with reserve(tmp_path, taken=["run_1"]) as living:
        with reserve(tmp_path, resumed=living) as other:
            assert (living, other) == ("run_2", "run_1")
    with reserve(tmp_path, resumed=living, taken=["run_1", "run_2"]) as again:
        assert again == "run_2"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_gives_its_name_back(tmp_path):
    ready, written = os.pipe()
    child = os.fork()
    if child == 0:
        with reserve(tmp_path):
            os.write(written, b"x")
            signal.pause()
    os.read(ready, 1)
    try:
        with reserve(tmp_path) as other, reserve(tmp_path, resumed="run_1") as another:
            assert (other, another) == ("run_2", "run_3")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert names(tmp_path) == [".run_1.lock"]
    with reserve(tmp_path, resumed="run_1", taken=["run_1"]) as mine:
        assert mine == "run_1"
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_never_have_one_name(tmp_path):
    """Each takes a name a hundred times and leaves a file of it, as a run does, which must not be there already."""
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                for _ in range(100):
                    with reserved(tmp_path, None, new_names(), lambda name: (tmp_path / name).exists()) as name:
                        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_EXCL))
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert set(names(tmp_path)) == set(itertools.islice(new_names(), 200))


def before_the_first_lock(monkeypatch, act):
    """Do something, as another process would, once a mark is opened and before it is locked."""
    original, pending = run_name._lock, [act]

    def lock(descriptor):
        if pending:
            pending.pop()()
        original(descriptor)

    monkeypatch.setattr(run_name, "_lock", lock)


@pytest.mark.skipif(os.name == "nt", reason="locks as POSIX has them")
def test_another_process_that_locks_a_new_mark_first(tmp_path, monkeypatch):
    import fcntl

    others = []

    def lock_it():
        others.append(os.open(tmp_path / ".run_1.lock", os.O_RDWR))
        fcntl.flock(others[0], fcntl.LOCK_EX)

    before_the_first_lock(monkeypatch, lock_it)
    with reserve(tmp_path) as name:
        assert name == "run_2"
    os.close(others[0])


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no open file")
def test_a_mark_that_its_owner_removes_meanwhile_is_made_anew(tmp_path, monkeypatch):
    mark = tmp_path / ".run_1.lock"
    mark.write_bytes(b"")
    before_the_first_lock(monkeypatch, mark.unlink)
    with reserve(tmp_path) as first, reserve(tmp_path) as second:
        assert (first, second) == ("run_1", "run_2") and mark.exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """A new name is safe there, because its mark was made just now; one that is resumed may be another's."""

    def lock(_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_name, "_lock", lock)
    with reserve(tmp_path) as first, reserve(tmp_path) as second:
        assert [first, second] == ["run_1", "run_2"]
        with reserve(tmp_path, resumed="run_1") as other:
            assert other == "run_3"


def test_a_folder_that_cannot_be_written_gives_a_name_all_the_same(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with reserve(tmp_path / "file", resumed="run_7", taken=["run_1"]) as name:
        assert name == "run_2"


def test_things_in_the_place_of_a_mark_are_passed_by(tmp_path):
    (tmp_path / ".run_1.lock").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".run_2.lock").mkdir()
    with reserve(tmp_path) as name:
        assert name == "run_3"


def test_numbered_names():
    assert list(itertools.islice(numbered("a"), 3)) == ["a", "a_2", "a_3"]
