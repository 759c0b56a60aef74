"""What a run will write is compared with what is free, before its first step."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch

from sara_core import TrainingError
from sara_core.training import snapshot
from sara_core.training.disk import disk_needed
from tests.support.toy_runs import Listening, toy_session


@pytest.fixture
def free(monkeypatch):
    """free(7) leaves seven bytes on every disk."""
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=size))


def test_what_a_run_writes_is_foretold(tmp_path):
    session = toy_session(tmp_path, every=2)
    least, most = disk_needed(session.run, session.places)
    delta = session.execute()
    content = 8 * delta.nnz
    state = session.training.state()
    session.places.snapshots.save(6, state, {})
    saved, _ = snapshot.load(session.places.snapshots.existing()[-1])
    of_trained = sum(tensor.nbytes for tensor in tensors(saved) if tensor.numel() == delta.nnz)
    assert 4 * delta.nnz < least < content < most
    assert most >= content + of_trained


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (dict, list)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(item)


def test_more_snapshots_and_the_hosts_own_files_need_more(tmp_path):
    session = toy_session(tmp_path, every=1)
    _, one = disk_needed(session.run, session.places)
    _, pictures = disk_needed(session.run, dataclasses.replace(session.places, other_bytes=1000))
    assert pictures == one + 1000
    session.places.snapshots.keep += 1
    _, two = disk_needed(session.run, session.places)
    _, last = disk_needed(session.run, dataclasses.replace(session.places, snapshot_every=0))
    _, only_one_due = disk_needed(session.run, dataclasses.replace(session.places, snapshot_every=6))
    assert two > one > last == only_one_due  # a run without any leaves one when it is stopped


def test_a_run_whose_delta_has_no_room_is_not_begun(tmp_path, free):
    host = Listening()
    session = toy_session(tmp_path, host=host)
    free(disk_needed(session.run, session.places)[0] - 1)
    with pytest.raises(TrainingError, match="finished delta would take at least .*, or train fewer weights"):
        session.execute()
    assert session.training.step == 0 and host.steps == [] and list(tmp_path.rglob("*.safetensors")) == []


def test_a_run_whose_snapshots_have_no_room_is_begun_with_a_warning(tmp_path, free):
    host = Listening()
    session = toy_session(tmp_path, host=host)
    free(disk_needed(session.run, session.places)[1] - 1)
    session.execute()
    assert "This run may write" in host.warnings["disk"] and len(host.steps) == 6


def test_a_run_with_room_says_nothing(tmp_path, free):
    host = Listening()
    session = toy_session(tmp_path, host=host)
    free(disk_needed(session.run, session.places)[1])
    session.execute()
    assert "disk" not in host.warnings
