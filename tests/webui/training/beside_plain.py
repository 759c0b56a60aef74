"""A training in a fake WebUI beside the same training without one: what is asked for, and what has to come out."""

import sys

import pytest
import torch
from PIL import Image

from sara_core import SparseDelta
from tests.webui.fakes.models import checkpoint
from tests.webui.fakes.trainable import SIGMAS, condition_of, latent_of, plain_unet
from tests.webui.fakes.webui import CHECKPOINTS
from tests.webui.training.fake_host import FakeHost, FakeModel

SHORT = {
    "name": "style", "folder": "cats", "resolution": 64, "steps": 4, "density": 0.2, "learning_rate": 1e-2,
    "trigger": "thing", "batch_size": 2, "snapshot_every": 0,
}  # fmt: skip
EMBEDDING = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def pictures(folder):
    """Where a WebUI of this data folder has the pictures "cats"."""
    cats = folder / "sara" / "pictures" / "cats"
    cats.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (80, 64), (80 * number, 40, 200 - 60 * number)).save(cats / f"{number}.png")


def trained(host, settings=SHORT, is_foretold=False, **changes):
    """The progress at the end of a training of these settings with changes. is_foretold: whether its memory is, which
    takes longer than these trainings"""
    from sara_webui.training import session
    from sara_webui.training.runner import Runner

    runner = Runner(host)
    with pytest.MonkeyPatch.context() as patch:
        if not is_foretold:
            patch.setattr(session, "foretold_memory", lambda *_: None)
        progress = runner.start({**settings, **changes})
        runner.wait()
    return progress


class PlainModel(FakeModel):
    """What is trained without a host."""

    signal = 1 / (1 + SIGMAS.square())

    def __init__(self, unet, embedding):
        super().__init__(unet)
        self.embedding = embedding

    def latent(self, pixels, seed):
        return latent_of(pixels.permute(2, 0, 1)[None])[0]

    def conditions(self, caption, size):
        return {"crossattn": condition_of(caption, self.embedding)}


def entries(progress):
    """Of the delta of a training that has finished."""
    assert progress.phase == "finished", progress.message
    return dict(SparseDelta.load(progress.delta).entries)


def entries_without_a_host(folder):
    """Those that the same training gives of checkpoint "one", without checkpointing, which changes no number."""
    pictures(folder)
    host, state = FakeHost(folder), checkpoint(CHECKPOINTS["one"])
    host.model, host.pictures = PlainModel(plain_unet(state), state[EMBEDDING]), folder / "sara" / "pictures"
    return entries(trained(host, gradient_checkpointing=False))


def check_same(one, other):
    """Of two deltas' entries."""
    assert one.keys() == other.keys()
    for name, entry in one.items():
        assert torch.equal(entry.indices, other[name].indices) and torch.equal(entry.values, other[name].values)


def noted(unet, monkeypatch):
    """The UNet's weights as the next training ends with them; filled when it does. unet: () → what has it in it"""
    store, found = sys.modules["sara_core.backward.store"].Store, {}
    restore = store.restore

    def noting(self):
        found.update({f"model.{name}": weight.clone() for name, weight in unet().named_parameters()})
        restore(self)

    monkeypatch.setattr(store, "restore", noting)
    return found


def after_two_steps(host, webui, end, monkeypatch):
    """Let the next training be "stopped" by the WebUI's own means then, or have it "failed"."""
    shown = host.show_step

    def show_step(step, steps):
        shown(step, steps)
        if step == 2:
            webui.shared.state.interrupted = end == "stopped"
            if end == "failed":
                raise RuntimeError("broken")

    monkeypatch.setattr(host, "show_step", show_step)
