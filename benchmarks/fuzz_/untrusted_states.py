"""Snapshots and optimizer states as targets to fuzz: whatever they say, the process lives on, and a run that refuses
one is as it was."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from benchmarks.fuzz_ import mutations
from benchmarks.fuzz_.exploration import Target
from devtools.comfyui.in_process import InProcessHost
from sara_core import SaRA
from sara_core.commands.terminal import WORDS
from sara_core.data.denoising_loss import Sample
from sara_core.data.noising import FlowNoising
from sara_core.errors import SaRAError
from sara_core.names.patterns import ALL_LAYERS
from sara_core.pipelines.network import DiffusersNetwork
from sara_core.pipelines.run import PipelineSettings
from sara_core.training import snapshot
from sara_core.training.adjustment import adjust
from sara_core.training.loop import Training
from sara_core.training.record import resumed_state
from sara_core.training.run import Run, denoising_loss

LIBRARY, COMMAND, NODE = "state, library", "snapshot, command line", "snapshot, node"
OPTIMIZERS = {
    "AdamW": (torch.optim.AdamW, {}),
    "AMSGrad": (torch.optim.AdamW, {"amsgrad": True}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "Adafactor": (torch.optim.Adafactor, {}),
}
STEPS = 4


def state_targets(folder: Path) -> Iterator[Target]:
    """Those that need no host."""
    yield Target(LIBRARY, *_library(folder), mutations.of_safetensors, (SaRAError,))
    yield Target(COMMAND, *_command_line(folder), mutations.of_safetensors, (SaRAError,))


def with_node_target(host: InProcessHost, model, use: Callable[[Target, Path], None]) -> None:
    """Run SaRA Train on a MODEL, and in place of its steps call `use` with the target of its resume and the folder
    where the node looks for snapshots."""
    node = host.pack_module("nodes.train")
    folder = host.pack_module("nodes.host.folders").snapshot_folder()
    own_error = host.pack_module("sara_core.errors").SaRAError

    class Fuzzed(node.TrainingSession):
        def execute(self):
            folder.mkdir(parents=True, exist_ok=True)
            use(Target(NODE, *_node(self, node._resumed, folder), mutations.of_safetensors, (own_error,)), folder)
            return self.run.store.delta()

    generator = torch.Generator().manual_seed(0)
    latents = [{"samples": torch.randn(1, 4, 8, 8, generator=generator)} for _ in range(3)]
    caption = [[torch.randn(1, 77, 768, generator=generator), {}]]
    with patch.object(node, "TrainingSession", Fuzzed):
        host.execute(
            "SaRATrain", model=model, latents=latents, positive=[caption] * 3, steps=STEPS, learning_rate=1e-3,
            select_by="count", count=500, include="time_embed", low_rank_weight=1e-4,
        )  # fmt: skip


def _library(folder: Path) -> tuple[list[bytes], Callable[[Path], None]]:
    """`SaRA.load_state_dict`, with states of several optimizers."""
    files, runs = [], {}
    for name, (kind, options) in OPTIMIZERS.items():
        model = _network()
        ours = SaRA(model, density=0.3, lr=1e-3, optimizer=kind, **options)
        fresh = ours.state_dict()
        for _ in range(2):
            _library_step(model, ours)
        if name == "AdamW":
            adjust(ours.store, ours.inner, 0.1)
        files.append(_file(folder, ours.state_dict(), {"optimizer": name}))
        ours.load_state_dict(fresh)
        runs[name] = (model, ours, fresh)

    def read(path: Path) -> None:
        state, settings = snapshot.load(path)
        model, ours, fresh = runs.get(str(settings.get("optimizer")), runs["AdamW"])
        _unless_refused(ours.store, lambda: ours.load_state_dict(state))
        _library_step(model, ours)
        ours.load_state_dict(fresh)

    return files, read


def _library_step(model, ours) -> None:
    ours.zero_grad()
    model(torch.ones(2, 6)).square().mean().backward()
    ours.step()


def _command_line(folder: Path) -> tuple[list[bytes], Callable[[Path], None]]:
    """`--resume` of `python -m sara_core train`: its settings, and the run that is put together from them, over a
    network that takes no time; snapshots of the first version of the command among them."""
    settings = _pipeline_settings()
    training = _command_line_run(settings).training
    fresh, files = training.state(), []
    for step in range(1, STEPS):
        _one_step(training)
        files.append(_file(folder, training.state(), asdict(settings)))
    older = {**training.state(), "batches": training.state()["batches"]["images"]}
    files.append(_file(folder, older, {
        "selection": {"density": 0.3}, "steps": STEPS, "batch_size": 1, "accumulation": 1, "learning_rate": None,
        "low_rank_weight": 0.1, "adjust_at": 0.5, "resolution": 8, "dtype": "float32", "seed": 0, "data": "digest",
    }))  # fmt: skip
    training.load_state(fresh)

    def read(path: Path) -> None:
        state = resumed_state(path, settings, WORDS)
        _unless_refused(training.store, lambda: training.load_state(state))
        _one_step(training)
        training.load_state(fresh)

    return files, read


def _pipeline_settings() -> PipelineSettings:
    return PipelineSettings(
        selection={"rule": "smallest", "density": 0.3}, layers=ALL_LAYERS, include=(), exclude=(), steps=STEPS,
        batch_size=1, grad_accumulation=1, optimizer="AdamW", learning_rate=0.0, schedule="constant", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=1.0, low_rank_weight=0.1, adjust_at=[0.5], noise_levels="uniform",
        noise_level_mean=0.0, noise_level_std=1.0, noise_from=0.0, noise_to=0.0,
        min_snr_gamma=0.0, caption_dropout=0.0, prior_weight=1.0, seed=0,
        data="digest", resolution=8, dtype="float32",
    )  # fmt: skip


def _command_line_run(settings: PipelineSettings) -> Run:
    optimizer = SaRA(_network(), **settings.selection, lr=1e-3)

    def predict(model, noisy, timesteps, conditions):
        return model(noisy.reshape(len(noisy), -1)).reshape(noisy.shape)

    samples = [Sample(torch.full((1, 2, 3), number / 3), {"none": torch.zeros(1)}) for number in range(3)]
    noising = FlowNoising(torch.linspace(0.1, 1.0, 10))
    network = DiffusersNetwork(
        optimizer.model, SimpleNamespace(predict=predict), noising, torch.device("cpu"), torch.float32
    )  # fmt: skip
    return Run(
        settings, optimizer.store, optimizer.selection, optimizer.inner, denoising_loss(settings, network, samples),
        images=len(samples), about_base={},
    )  # fmt: skip


def _node(session, resumed: Callable, folder: Path) -> tuple[list[bytes], Callable[[Path], None]]:
    training, settings = session.training, session.run.settings
    fresh, files = training.state(), []
    for _ in range(2):
        _one_step(training)
        files.append(_file(folder, training.state(), asdict(settings)))
    training.load_state(fresh)

    def read(path: Path) -> None:
        state, *_ = resumed(path.name, settings)
        _unless_refused(training.store, lambda: session.resume(state))
        # What a step does with the state; the network's part would take a hundred times as long.
        training.batches.draws.next_batch()
        training.store.values.grad = torch.full_like(training.store.values, 0.01)
        training.low_rank.add_gradient()
        training.optimizer.step()
        training.store.write()
        training.load_state(fresh)

    return files, read


class _StepIsDone(Exception):
    """Ends a run after a step."""


def _one_step(training: Training) -> None:
    def stop(step, loss):
        raise _StepIsDone

    with contextlib.suppress(_StepIsDone):
        training.run(on_step=stop)


def _unless_refused(store, load: Callable[[], None]) -> None:
    """Load a state; if that raises, Δ must be what it was."""
    before = store.values.detach().clone()
    try:
        load()
    except Exception:
        assert torch.equal(store.values, before), "a state that was refused has changed Δ"
        raise


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.SiLU(), torch.nn.Linear(8, 6))


def _file(folder: Path, state: dict, settings: dict) -> bytes:
    path = folder / "seed.safetensors"
    snapshot.save(path, state, settings)
    content = path.read_bytes()
    path.unlink()
    return content
