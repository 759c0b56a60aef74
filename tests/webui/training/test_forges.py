"""Forge and its kin train: a delta as the same UNet gives it without a host, of the model without what pictures had on
it; and afterwards everything of the host's is back."""

import sys
from contextlib import contextmanager

import pytest
import torch

from sara_core import SparseDelta
from tests.webui.fakes.forge import forge_running
from tests.webui.fakes.forge_patchers import Classic, Forge, Neo, ReForge
from tests.webui.fakes.trainable import trainable
from tests.webui.reference import differing
from tests.webui.scenarios import Files
from tests.webui.training.beside_plain import after_two_steps, check_same, entries, noted, pictures, trained


@contextmanager
def _running(folder, rules):
    with forge_running(folder, rules()) as webui:
        Files(webui)
        pictures(folder)
        yield webui


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
        host = trainable(webui)
        ended_with = noted(lambda: webui.model.forge_objects_original.unet.model, monkeypatch)
        (first,) = webui.draw("a cat")
        webui.draw("<sara:alpha:0.7> <lora:plain:1>")
        check_same(entries(trained(host)), wanted)
        (again,) = webui.draw("a cat")
        assert not differing(first, again)
        (picture,) = webui.draw("<sara:style:1>")
        assert not differing(ended_with, {name: picture[name] for name in ended_with})
        assert differing(ended_with, {name: webui.base()[name] for name in ended_with})


def _in_fp8(engine):
    engine.is_sdxl, kmodel = False, engine.forge_objects_original.unet.model
    kmodel.storage_dtype, kmodel.get_dtype = torch.float8_e4m3fn, lambda: torch.float8_e4m3fn


def _of_another_family(engine):
    engine.is_sd1 = engine.is_sdxl = False


@pytest.mark.parametrize(
    ("spoil", "said"), [(_in_fp8, "stored as float8_e4m3fn"), (_of_another_family, "SD1.5 and SDXL")]
)
@pytest.mark.parametrize("rules", [Forge, Neo, ReForge, Classic])
def test_what_is_chosen_is_trained_whatever_is_loaded(tmp_path, rules, spoil, said):
    """Some load what is chosen only for the next picture: the model of the last one says nothing of it."""
    with _running(tmp_path, rules) as webui:
        host = trainable(webui)
        spoil(webui.model)
        refused = trained(host)
        assert refused.phase == "failed" and said in refused.message
        webui.chosen = "two"
        progress = trained(host)
        assert entries(progress)
        assert SparseDelta.load(progress.delta).metadata["sara.base_name"] == "two.safetensors"
        now = webui.weights_now()
        assert not differing(now, {name: webui.base()[name] for name in now})


@pytest.mark.parametrize(
    ("rules", "end"), [(Forge, "failed"), (ReForge, "finished"), (ReForge, "stopped"), (Classic, "failed")]
)
def test_all_of_the_hosts_is_back(tmp_path, rules, end, monkeypatch):
    with _running(tmp_path, rules) as webui:
        host = trainable(webui)
        host.host.take_off_everything()
        before = _state_of_the_host(webui)
        if end != "finished":
            after_two_steps(host, webui, end, monkeypatch)
        progress = trained(host)
        assert progress.phase == end, progress.message
        after = _state_of_the_host(webui)
        assert after[1:] == before[1:] and all(after[0][name] is weight for name, weight in before[0].items())
        now = webui.weights_now()
        assert not differing(now, {name: webui.base()[name] for name in now})


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
