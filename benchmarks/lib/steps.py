"""One training step, and a clock for its two phases that a GPU's own events keep where there is one."""

import time
from collections.abc import Callable

import torch


def train_step(
    predict: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer | None, given: torch.Tensor, clock: "Clock"
) -> float:
    """The loss of a step whose forward is `predict`; without an optimizer (the floor), back to the input `given`."""
    clock.start()
    loss = predict().float().square().mean()
    loss.backward()
    clock.lap()
    if optimizer is None:
        given.grad = None
    else:
        optimizer.step()
        optimizer.zero_grad()
    clock.lap()
    clock.stop()
    return loss.item()


class Clock:
    """phases: per step, seconds of forward and backward, and of the optimizer with writing its values back"""

    def __init__(self, device: str):
        self.phases: list[list[float]] = []
        self._device = device

    def start(self) -> None:
        self._marks = []
        self.lap()

    def lap(self) -> None:
        self._marks.append(mark(self._device))

    def stop(self) -> None:
        wait(self._device)
        self.phases.append([seconds(*pair, self._device) for pair in zip(self._marks, self._marks[1:])])


def mark(device: str):
    """A point in time, on the GPU's own clock where there is one."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(begin, end, device: str) -> float:
    """From one mark to another; on a GPU after `wait`."""
    return begin.elapsed_time(end) / 1000 if device == "cuda" else end - begin


def wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
