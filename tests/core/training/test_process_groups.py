"""How a process joins the others of its training and leaves them, without any others."""

import pytest
import torch
import torch.distributed as dist

from sara_core.errors import TrainingError
from sara_core.training.processes import Processes, joined_processes

CPU = torch.device("cpu")


@pytest.fixture
def group(monkeypatch):
    """What is asked of torch.distributed, in its order, as the second of three processes."""
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(f"use {device}"))
    monkeypatch.setattr(dist, "init_process_group", lambda backend: asked.append(f"join by {backend}"))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "barrier", lambda: asked.append("wait for the others"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append("leave"))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(3))
    return asked


def test_they_wait_for_each_other_before_they_leave(group):
    with joined_processes() as processes:
        assert (processes.rank, processes.count, processes.device, processes.is_first) == (1, 3, CPU, False)
        assert group == ["join by gloo"]
    assert group == ["join by gloo", "wait for the others", "leave"]


def test_one_that_raises_leaves_at_once(group):
    with pytest.raises(KeyError), joined_processes():
        raise KeyError
    assert group == ["join by gloo", "leave"]


@pytest.mark.parametrize("number", [0, 1])
def test_on_gpus_each_has_its_own(group, monkeypatch, number):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", str(number))
    with joined_processes() as processes:
        assert processes.device == torch.device("cuda", number)
    assert group == [f"use cuda:{number}", "join by nccl", "wait for the others", "leave"]


def test_more_processes_than_gpus_are_refused(group, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(TrainingError, match="more processes than the 2 GPUs.*--nproc-per-node 2"), joined_processes():
        pass
    assert group == []


@pytest.mark.parametrize("size", ["1", None])
@pytest.mark.parametrize("has_gpus", [True, False])
def test_a_process_that_was_started_by_itself_is_alone(group, monkeypatch, size, has_gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpus)
    monkeypatch.setenv("WORLD_SIZE", size) if size else monkeypatch.delenv("WORLD_SIZE")
    with joined_processes() as processes:
        assert processes == Processes(0, 1, torch.device("cuda" if has_gpus else "cpu")) and processes.is_first
    assert group == []


def test_alone_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: pytest.fail("somebody was asked"))
    alone, mean = Processes(0, 1, CPU), torch.tensor([3.0])
    alone.average_(mean)
    assert mean.tolist() == [3.0] and alone.any(True) is True and alone.any(False) is False
    assert alone.own_part([1, 2, 3]) == [1, 2, 3]


def test_several_take_turns_average_and_tell_each_other(group):
    second, mean = Processes(1, 3, CPU), torch.tensor([1.0, 2.0])
    assert second.own_part([1, 2, 3, 4, 5]) == [2, 5]
    second.average_(mean)
    assert mean.tolist() == [1.0, 2.0]  # of three alike
    assert second.any(True) is True and second.any(False) is False
