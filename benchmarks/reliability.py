"""Kills a training at random moments and looks at what is left: the last complete snapshot must load, and be right.

    python dev.py bench reliability [--rounds N]

A process that has torch loaded forks one child a round, which trains a small network and writes a snapshot after every
step; the parent ends it with SIGKILL after a random time. What is left must be a whole snapshot of some step, with
the very values that an undisturbed run has after that step, and must continue to the very end that run has.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from sara_core import SaRA
from sara_core.training import snapshot
from sara_core.training.loop import Training, TrainingSettings

STEPS = 60
# The longest that a child lives: somewhat longer than all its steps take on a slow machine.
LONGEST_LIFE = 0.6
SEED = 7


class Batches:
    """Regression on random data, drawn anew for every batch."""

    def __init__(self, model):
        self.model, self.generator = model, torch.Generator().manual_seed(SEED)

    def __call__(self) -> torch.Tensor:
        x = torch.randn(16, 64, generator=self.generator)
        return (self.model(x) - x.roll(1, 1)).square().mean()

    def state(self) -> dict:
        return {"generator": self.generator.get_state()}

    def load_state(self, state: dict) -> None:
        self.generator.set_state(state["generator"])


def new_training() -> Training:
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64))
    optimizer = SaRA(model, density=0.2, lr=1e-3)
    settings = TrainingSettings(STEPS, adjust_at=(STEPS // 2,), theta=optimizer.selection.theta)
    return Training(optimizer.store, optimizer.inner, Batches(model), settings)


def train_and_be_killed(folder: Path) -> None:
    """What the child does: it leaves one snapshot, never two, as a user's folder with keep = 1 would have."""
    training = new_training()
    snapshots = snapshot.RunSnapshots(folder, "run", keep=1)
    training.run(on_step=lambda step, _: snapshots.save(step, training.state(), {}))


def values_after_every_step() -> list[torch.Tensor]:
    training, values = new_training(), []
    training.run(on_step=lambda *_: values.append(training.store.state()["values"]))
    return values


def kill_after(seconds: float, folder: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            train_and_be_killed(folder)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def check(folder: Path, expected: list[torch.Tensor]) -> int:
    """The step of the newest snapshot that is left, 0 for none; raises if any file under its name is not right."""
    step = 0
    for path in sorted(folder.glob("*.safetensors")):
        state, _ = snapshot.load(path)
        step = state["step"]
        if not torch.equal(state["store"]["values"], expected[step - 1]):
            raise SystemExit(f"{path.name} holds other values than the undisturbed run had after step {step}.")
        training = new_training()
        training.load_state(state)
        training.run()
        if not torch.equal(training.store.state()["values"], expected[-1]):
            raise SystemExit(f"Resumed from {path.name}, the run ends elsewhere than the undisturbed one.")
    return step


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench reliability", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="children to kill (default: 50)")
    rounds = parser.parse_args().rounds
    if not hasattr(os, "fork"):
        raise SystemExit("This check forks processes, which Windows cannot.")
    torch.set_num_threads(1)  # the pool of more threads does not survive a fork
    expected = values_after_every_step()
    lifetimes, left = random.Random(SEED), []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="comfyui-sara-killed-") as folder:
            kill_after(lifetimes.uniform(0, LONGEST_LIFE), Path(folder))
            left.append(check(Path(folder), expected))
    print(
        f"{rounds} of {rounds} killed trainings left what they should: "
        f"{sum(step == 0 for step in left)} no snapshot yet, {sum(step == STEPS for step in left)} the last one, "
        f"{sum(0 < step < STEPS for step in left)} one from the middle (steps {min(left)} to {max(left)})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
