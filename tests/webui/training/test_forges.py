"""Forge and its kin train: a delta as the same UNet gives it without a host, of the model without what pictures had on
it; and afterwards everything of the host's is back."""

import sys
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from sara_core import SparseDelta
from tests.webui.fakes.forge import forge_running
from tests.webui.fakes.forge_patchers import Classic, Forge, Neo, ReForge
from tests.webui.fakes.models import checkpoint
from tests.webui.fakes.trainable import SIGMAS, condition_of, latent_of, plain_unet, trainable
from tests.webui.fakes.webui import CHECKPOINTS
from tests.webui.reference import differing
from tests.webui.scenarios import Files
from tests.webui.training.fake_host import FakeHost, FakeModel

SHORT = {
    "name": "style", "folder": "cats", "resolution": 64, "steps": 4, "density": 0.2, "learning_rate": 1e-2,
    "trigger": "thing", "batch_size": 2, "snapshot_every": 0,
}  # fmt: skip
_EMBEDDING = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def _pictures(folder):
    cats = folder / "sara" / "pictures" / "cats"
    cats.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (80, 64), (80 * number, 40, 200 - 60 * number)).save(cats / f"{number}.png")


def _trained(host, **changes):
    from sara_webui.training import session
    from sara_webui.training.runner import Runner

    runner = Runner(host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "foretold_memory", lambda *_: None)  # takes longer than these trainings
        progress = runner.start({**SHORT, **changes})
        runner.wait()
    return progress


@contextmanager
def _running(folder, rules):
    with forge_running(folder, rules()) as webui:
        Files(webui)
        _pictures(folder)
        yield webui


class _PlainModel(FakeModel):
    signal = 1 / (1 + SIGMAS.square())

    def __init__(self, unet, embedding):
        super().__init__(unet)
        self.embedding = embedding

    def latent(self, pixels, seed):
        return latent_of(pixels.permute(2, 0, 1)[None])[0]

    def conditions(self, caption, size):
        return {"crossattn": condition_of(caption, self.embedding)}


def _entries(progress):
    assert progress.phase == "finished", progress.message
    return {name: entry for name, entry in SparseDelta.load(progress.delta).entries.items()}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The entries that the same training gives without a host, without checkpointing, which changes no number."""
    folder = tmp_path_factory.mktemp("alone")
    _pictures(folder)
    host, state = FakeHost(folder), checkpoint(CHECKPOINTS["one"])
    host.model, host.pictures = _PlainModel(plain_unet(state), state[_EMBEDDING]), folder / "sara" / "pictures"
    return _entries(_trained(host, gradient_checkpointing=False))


def _same(one, other):
    assert one.keys() == other.keys()
    for name, entry in one.items():
        assert torch.equal(entry.indices, other[name].indices) and torch.equal(entry.values, other[name].values)


def _state_of_the_host(webui):
    model = webui.model.forge_objects_original.unet.model
    return (
        dict(model.named_parameters()), dict(model.named_buffers()),
        {name: type(part) for name, part in model.named_modules()},
        {name: sorted(part.__dict__) for name, part in model.named_modules()},
        {name: vars(sys.modules[name]).copy() for name in sys.modules if name.endswith((".attention", ".nn.unet"))},
    )  # fmt: skip


@pytest.mark.parametrize("rules", [Forge, Neo, ReForge, Classic])
def test_a_delta_is_that_of_the_same_unet_without_a_host(tmp_path, rules, wanted, monkeypatch):
    with _running(tmp_path, rules) as webui:
        host, ended_with = trainable(webui), _noted(webui, monkeypatch)
        (first,) = webui.draw("a cat")
        webui.draw("<sara:alpha:0.7> <lora:plain:1>")
        _same(_entries(_trained(host)), wanted)
        (again,) = webui.draw("a cat")
        assert not differing(first, again)
        (picture,) = webui.draw("<sara:style:1>")
        assert not differing(ended_with, {name: picture[name] for name in ended_with})
        assert differing(ended_with, {name: webui.base()[name] for name in ended_with})


def _noted(webui, monkeypatch):
    """The UNet's weights as the next training ends with them; filled when it does."""
    store, noted = sys.modules["sara_core.backward.store"].Store, {}
    restore = store.restore

    def noting(self):
        unet = webui.model.forge_objects_original.unet.model
        noted.update({f"model.{name}": weight.clone() for name, weight in unet.named_parameters()})
        restore(self)

    monkeypatch.setattr(store, "restore", noting)
    return noted


@pytest.mark.parametrize(
    ("rules", "end"), [(Forge, "failed"), (ReForge, "finished"), (ReForge, "stopped"), (Classic, "failed")]
)
def test_all_of_the_hosts_is_back(tmp_path, rules, end, monkeypatch):
    with _running(tmp_path, rules) as webui:
        host = trainable(webui)
        host.host.take_off_everything()
        before = _state_of_the_host(webui)
        if end != "finished":
            _after_two_steps(host, webui, end, monkeypatch)
        progress = _trained(host)
        assert progress.phase == end, progress.message
        after = _state_of_the_host(webui)
        assert after[1:] == before[1:] and all(after[0][name] is weight for name, weight in before[0].items())
        now = webui.weights_now()
        assert not differing(now, {name: webui.base()[name] for name in now})


def _after_two_steps(host, webui, end, monkeypatch):
    shown = host.show_step

    def show_step(step, steps):
        shown(step, steps)
        if step == 2:
            webui.shared.state.interrupted = end == "stopped"
            if end == "failed":
                raise RuntimeError("broken")

    monkeypatch.setattr(host, "show_step", show_step)


@pytest.mark.parametrize("rules", [ReForge, Classic])
class TestOlder:
    def test_what_the_model_predicts_is_told_by_what_the_host_has_mixed(self, tmp_path, rules):
        """A checkpoint with its own word for it has that, whatever its type says."""
        from tests.webui.fakes import trainable as fakes

        for kind, wanted in ((fakes._Eps, "eps"), (fakes._V, "v")):
            with forge_running(tmp_path, rules()) as webui:
                host = trainable(webui, kind)
                with host.ready() as model:
                    assert model.prediction == wanted

    def test_noise_levels_of_another_kind_are_refused(self, tmp_path, rules):
        from tests.webui.fakes import trainable as fakes

        with forge_running(tmp_path, rules()) as webui:
            assert "noise levels of another kind" in trainable(webui, fakes._Edm).refusal()

    def test_a_model_that_is_cast_and_a_compiled_one_are_refused(self, tmp_path, rules):
        with forge_running(tmp_path, rules()) as webui:
            host = trainable(webui)
            kmodel = webui.model.forge_objects_original.unet.model
            kmodel.manual_cast_dtype = torch.float16
            assert "stored as float32 and computes in float16" in host.refusal()
            kmodel.manual_cast_dtype = None
            kmodel.diffusion_model._orig_mod = 1
            assert "compiled" in host.refusal()
