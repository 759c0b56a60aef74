"""AUTOMATIC1111's WebUI trains: a delta as the same UNet gives it without a host, of the checkpoint that is chosen; and
afterwards everything of the host's is back."""

import pytest

from sara_core import SparseDelta, TrainingError, UnsupportedModelError
from tests.webui.fakes.trainable_a1111 import trainable
from tests.webui.fakes.webui import running
from tests.webui.reference import differing
from tests.webui.scenarios import Files
from tests.webui.training.beside_plain import after_two_steps, check_same, entries, noted, pictures, trained


@pytest.fixture
def webui(tmp_path):
    with running(tmp_path) as webui:
        Files(webui)
        pictures(tmp_path)
        yield webui


def _state_of_the_host(webui):
    unet = webui.model.model
    return (
        {name: (type(part), sorted(part.__dict__), part.training) for name, part in unet.named_modules()},
        {name: (weight.requires_grad, weight.grad) for name, weight in unet.named_parameters()},
        vars(webui.optimizations).copy(), webui.shared.state.interrupted,
    )  # fmt: skip


def test_a_delta_is_that_of_the_same_unet_without_a_host(webui, wanted, monkeypatch):
    host = trainable(webui)
    ended_with = noted(lambda: webui.model.model, monkeypatch)
    (first,) = webui.draw("a cat")
    webui.draw("<sara:alpha:0.7> <lora:plain:1>")
    check_same(entries(trained(host)), wanted)
    assert not differing(webui.weights(), webui.base())
    (again,) = webui.draw("a cat")
    assert not differing(first, again)
    (picture,) = webui.draw("<sara:style:1>")
    assert not differing(ended_with, {name: picture[name] for name in ended_with})
    assert differing(ended_with, {name: webui.base()[name] for name in ended_with})


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_all_of_the_hosts_is_back(webui, end, monkeypatch):
    host = trainable(webui)
    host.host.take_off_everything()
    before = _state_of_the_host(webui)
    if end != "finished":
        after_two_steps(host, webui, end, monkeypatch)
    progress = trained(host)
    assert progress.phase == end, progress.message
    assert _state_of_the_host(webui) == before
    assert not differing(webui.weights(), webui.base())


def test_after_a_second_pass_with_another_checkpoint_the_chosen_one_is_trained(webui, wanted):
    """The host loads the chosen one again only for the next picture."""
    host = trainable(webui)
    webui.draw("<sara:alpha:1>", hr_prompt="<sara:alpha:1>", hr_checkpoint="two")
    assert webui.model.sd_checkpoint_info.title == "two"
    progress = trained(host)
    check_same(entries(progress), wanted)
    assert SparseDelta.load(progress.delta).metadata["sara.base_name"] == "one.safetensors"
    assert not differing(webui.weights(), webui.base("one"))


def test_what_a_second_pass_has_left_is_not_asked_whether_it_can_be_trained(webui):
    host = trainable(webui)
    webui.limit = 2  # models in memory: each says of itself what it is
    webui.draw("", hr_prompt="", hr_checkpoint="two")
    webui.model.is_sd3 = True
    assert entries(trained(host))
    webui.chosen = "two"
    refused = trained(host)
    assert refused.phase == "failed" and "Stable Diffusion 3" in refused.message


def test_what_cannot_be_trained_gets_one_line(webui):
    host = trainable(webui)
    model = webui.model
    for owner, name, value, said in (
        (model, "is_sd3", True, "Stable Diffusion 3"), (model, "lowvram", True, "--medvram"),
        (webui.devices, "fp8", True, "FP8 weight"), (model.model, "conditioning_key", "hybrid", "inpainting"),
        (webui.shared, "loaded_hypernetworks", [1], "hypernetwork is still"),
    ):  # fmt: skip
        before = getattr(owner, name)
        setattr(owner, name, value)
        with pytest.raises(UnsupportedModelError, match=said), host.ready():
            pass
        setattr(owner, name, before)
    with host.ready() as made:
        assert made.name == "one.safetensors"
    webui.model, webui.sd_models.reload_model_weights = None, lambda info=None: None
    with pytest.raises(TrainingError, match="No model"), host.ready():
        pass
