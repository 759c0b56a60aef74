"""Runs of a small network that need no host, and a host that notes what it is told."""

import torch

from sara_core import SaRA
from sara_core.data.denoising_loss import Sample
from sara_core.training.host import Host, Places
from sara_core.training.optimizer_choice import chosen_optimizer
from sara_core.training.record import RunSettings
from sara_core.training.run import Run, denoising_loss
from sara_core.training.session import TrainingSession
from sara_core.training.snapshot import RunSnapshots

SIZE = 6


def settings(**changes) -> RunSettings:
    usual = {
        "selection": {"rule": "smallest", "density": 0.4}, "layers": "all layers", "include": (), "exclude": (),
        "steps": 6, "batch_size": 2, "grad_accumulation": 1, "optimizer": "AdamW", "learning_rate": 1e-2,
        "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "low_rank_weight": 0.0,
        "adjust_at": [0.5], "noise_levels": "uniform", "noise_level_mean": 0.0, "noise_level_std": 1.0,
        "noise_from": 0.0, "noise_to": 0.0, "min_snr_gamma": 0.0, "caption_dropout": 0.0, "prior_weight": 1.0,
        "seed": 0, "data": "digest",
    }  # fmt: skip
    return RunSettings(**{**usual, **changes})


class ToyNetwork:
    """A Network of vectors. after_losses: called after each forward, with the number of those so far"""

    levels, sigmas = 10, torch.arange(10) / 10

    def __init__(self, model, after_losses=lambda forwards: None):
        self.model, self.after_losses, self.forwards = model, after_losses, 0

    def losses(self, draws):
        noise = torch.stack([draw.noise for draw in draws])
        noisy = torch.stack([draw.sample.latent + draw.level / self.levels * draw.noise for draw in draws])
        losses = (self.model(noisy) - noise).square().mean(1)
        self.forwards += 1
        replaced = self.after_losses(self.forwards)
        return losses if replaced is None else losses * replaced

    def mean_loss(self, draws):
        return self.losses(draws).mean()

    def min_snr_weights(self, levels, gamma):
        return torch.ones(len(levels))


def toy_run(chosen: RunSettings | None = None, after_losses=lambda forwards: None) -> Run:
    chosen = chosen or settings()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(SIZE, 8), torch.nn.SiLU(), torch.nn.Linear(8, SIZE))
    optimizer, rate, options = chosen_optimizer(chosen)
    ours = SaRA(model, **chosen.selection, lr=rate, optimizer=optimizer, **options)
    samples = [Sample(torch.full((SIZE,), number / 3), {}) for number in range(3)]
    batches = denoising_loss(chosen, ToyNetwork(model, after_losses), samples)
    return Run(chosen, ours.store, ours.selection, ours.inner, batches, images=3, about_base={"sara.base_name": "toy"})


class Listening(Host):
    """Notes everything. stop_after, finish_after, save_after: the step after which that is requested, or None"""

    def __init__(
        self, stop_after: int | None = None, finish_after: int | None = None, save_after: int | None = None
    ):
        super().__init__()
        self.stop_after, self.finish_after, self.save_after, self.step = stop_after, finish_after, save_after, 0
        self.saved, self.snapshots = [], []
        self.steps, self.reports, self.shown_warnings, self.logged, self.ended = [], [], [], [], []

    def finish_requested(self):
        return self.step == self.finish_after

    def save_requested(self):
        return self.step == self.save_after

    def saved_on_request(self, kept):
        self.saved.append(kept)

    def saved_snapshot(self, path):
        self.snapshots.append(path)

    def stop_requested(self):
        return self.step == self.stop_after

    def after_step(self, step):
        self.step = step

    def show_step(self, step):
        self.steps.append(step)

    def show_report(self, text):
        self.reports.append(text)

    def show_warning(self, text):
        self.shown_warnings.append(text)

    def log(self, text, level=0):
        self.logged.append(text)

    def ended_early(self, kept, is_said):
        self.ended.append((kept, is_said))


def places(folder, every: int = 0, hands_on: list | None = None, **changes) -> Places:
    """In a folder: snapshots/run_step…, finished.safetensors and stopped.safetensors. hands_on: for a host that hands
    finished deltas on, the list that those without a file get into"""
    def save_stopped(delta):
        delta.save(folder / "stopped.safetensors", overwrite=False)
        return folder / "stopped.safetensors"

    usual = {
        "snapshots": RunSnapshots(folder / "snapshots", "run", 2), "snapshot_every": every,
        "save_stopped": save_stopped, "save_finished": lambda delta: delta.save(folder / "finished.safetensors"),
        "keep_without_file": None if hands_on is None else hands_on.append,
    }
    return Places(**{**usual, **changes})


def toy_session(folder, run: Run | None = None, host: Host | None = None, **places_changes) -> TrainingSession:
    return TrainingSession(run or toy_run(), places(folder, **places_changes), host or Listening())
