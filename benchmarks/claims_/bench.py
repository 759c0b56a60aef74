"""Trains the base by a cell's method and measures what it draws: what the tables' lines are made of."""

import time
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from demo import base_unet
from demo.autoencoder import LATENT_SCALE

from . import base, drawing, icon_sets, judge, measures, names, render
from .contexts import Contexts, digest
from .lines import Job
from .protocol import JUDGED, PICTURES, Cell
from .training import Settings, Task, Trained, train


class Bench:
    """work: a folder for the icon sets and encoded captions; device: what trains, draws and judges, by random numbers
    that come from the CPU; ComfyUI must be importable"""

    def __init__(self, work: Path, settings: Settings = Settings(), judged: int = JUDGED, device: str = "cpu"):
        self.work, self.settings, self.judged, self.device = work, settings, judged, device
        self.contexts = Contexts(work)
        if device != "cpu":
            torch.backends.cudnn.allow_tf32 = False  # on the CPU all bits of fp32 count
        # Lines are of use only to a bench that would measure the same.
        self.made_with = {
            "base": digest(base.UNET_FILE), "autoencoder": digest(base.AUTOENCODER_FILE),
            "judge": digest(judge.FILE), "judged": judged, **asdict(settings),
            **({} if device == "cpu" else {"device": device}),
        }  # fmt: skip

    # Of these a bench that only says what others are to measure takes nothing on the device.
    @cached_property
    def verdicts(self) -> judge.Verdicts:
        """The judge."""
        return judge.load().to(self.device)

    @cached_property
    def autoencoder(self) -> torch.nn.Module:
        """The base's own."""
        return base.trained_autoencoder().to(self.device)

    def job(self, cell: Cell) -> Job:
        """A cell's training and what is measured of it."""
        return Job(cell._asdict(), lambda: self.measured(cell))

    def measured(self, cell: Cell) -> dict:
        """Train and measure a cell; what it took is among the figures."""
        start = time.perf_counter()
        trained = self.trained(cell)
        seconds = time.perf_counter() - start
        figures = self.figures(trained.model, cell.style)
        return {
            "trained": trained.count, "loss": sum(trained.losses[-50:]) / len(trained.losses[-50:]),
            "training seconds": round(seconds, 1), "seconds": round(time.perf_counter() - start, 1), **figures,
        }  # fmt: skip

    def trained(self, cell: Cell) -> Trained:
        """The base model after a cell's training."""
        return self.trained_on(self.task(cell.style), cell)

    def trained_on(self, task: Task, cell: Cell) -> Trained:
        """The base model after a cell's training on another task than its style."""
        size = sum(parameter.numel() for parameter in self.new_model().parameters())
        return train(
            self.new_model, cell.method, round(cell.share * size), cell.rate, task, cell.seed, self.settings,
            **dict(cell.options),
        )  # fmt: skip

    def figures(self, model: torch.nn.Module, style: str) -> dict[str, float]:
        """What measures.measure says of a model's pictures of held-out names, with the style's trigger and without."""
        asked = self.asked(style)
        return measures.measure(
            self.verdicts, style, self._drawn(model, asked, style), self._drawn(model, asked),
            self._base_drawn(tuple(asked)), self._style_pictures(style), asked, self.choice,
        )  # fmt: skip

    def base_figures(self, model: torch.nn.Module, style: str) -> dict[str, float]:
        """How well a model still does what the base does, by pictures without a trigger of the names that `style` is
        judged by: text, right and drift of measures.measure."""
        asked = self.asked(style)
        return measures.kept(
            self.verdicts, self._drawn(model.requires_grad_(False).eval(), asked), self._base_drawn(tuple(asked)),
            asked, self.choice,
        )  # fmt: skip

    def new_model(self) -> torch.nn.Module:
        """The base UNet, untouched, on the device, of torch's own layers: those of ComfyUI compute the same, but have a
        forward of their own, which no trainer of plain PyTorch can look into."""
        model = base_unet.new()
        model.load_state_dict(base.trained_so_far())
        for module in model.modules():
            for kind in (torch.nn.Linear, torch.nn.Conv2d):
                if isinstance(module, kind):
                    module.__class__ = kind
        return model.to(self.device)

    @cached_property
    def choice(self) -> list[str]:
        """All names that the base knows."""
        return render.pictures(icon_sets.NOTO, self.work)[0]

    def asked(self, style: str) -> list[str]:
        """Names to draw: held out, known to the base, and in the style's own set."""
        own = set(render.pictures(icon_sets.BY_NAME[style], self.work)[0])
        return [name for name in self.choice if names.is_held_out(name) and name in own][: self.judged]

    def captions(self, style: str) -> list[str]:
        """All captions that a cell of a style is told."""
        told = [*self._taught(style)[0], *self.asked(style)]
        return ["", *(names.caption(name, words) for name in told for words in (trigger(style), ""))]

    @lru_cache(maxsize=1)
    def task(self, style: str) -> Task:
        """A style's pictures of names that the base knows and that are not held out, with the trigger."""
        wanted, pictures = self._taught(style)
        return self.task_of(
            pictures, [names.caption(name, trigger(style)) for name in wanted], list(map(names.caption, wanted))
        )

    def _taught(self, style: str) -> tuple[list[str], torch.Tensor]:
        chosen, pixels = render.pictures(icon_sets.BY_NAME[style], self.work)
        known = set(self.choice)
        rows = [row for row, name in enumerate(chosen) if name in known and not names.is_held_out(name)]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:PICTURES]
        rows = [rows[k] for k in order]
        return [chosen[row] for row in rows], torch.from_numpy(pixels[rows]).float() / 255

    @torch.no_grad()
    def task_of(self, pictures: torch.Tensor, captions: list[str], plain: list[str]) -> Task:
        """Pictures, float [n, 64, 64, 3] in 0..1, and their captions with and without a trigger, as a training takes
        them."""
        latents = self.autoencoder.encode(pictures.to(self.device).permute(0, 3, 1, 2) * 2 - 1) * LATENT_SCALE
        return Task(latents, self._contexts(captions), self._contexts(plain), self._contexts([""])[0].float())

    def drawn(self, model: torch.nn.Module, captions: list[str], seed: int = 0) -> torch.Tensor:
        """A picture of each caption, float [n, 64, 64, 3] in 0..1, on the CPU; the same noise for the same place and
        seed."""
        empty = self._contexts([""])[0].float()
        latents = drawing.draw(model, self._contexts(captions), empty, seed)
        return drawing.decode(self.autoencoder, latents).cpu()

    def _contexts(self, captions: list[str]) -> torch.Tensor:
        return self.contexts.of(captions).to(self.device)

    def _drawn(self, model, asked: list[str], style: str | None = None) -> torch.Tensor:
        return self.drawn(model, [names.caption(name, trigger(style) if style else "") for name in asked])

    @lru_cache
    def _base_drawn(self, asked: tuple[str, ...]) -> torch.Tensor:
        return self._drawn(self.new_model().requires_grad_(False).eval(), list(asked))

    def _style_pictures(self, style: str) -> torch.Tensor:
        chosen, pixels = render.pictures(icon_sets.BY_NAME[style], self.work)
        return torch.from_numpy(pixels[[names.is_held_out(name) for name in chosen]]).float() / 255


def trigger(style: str) -> str:
    """Words before every caption of a style."""
    return f"{style.split('-')[0]} style"
