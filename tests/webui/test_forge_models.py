"""Forge and its kin: what they keep and compute in, models that go, other models than can be changed, its end."""

import gc
import logging
import sys
import weakref

import pytest
import torch

from tests.webui.fakes.forge import forge_running
from tests.webui.fakes.forge_patchers import Classic, Forge, Neo, ReForge
from tests.webui.fakes.stand_ins import module
from tests.webui.reference import differing, expected
from tests.webui.scenarios import SCENARIOS, Files, play

pytestmark = pytest.mark.bits
_HOSTS = [Neo, Forge, ReForge, Classic]
_EMBEDDING = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.fixture(params=_HOSTS, ids=lambda rules: rules.name)
def webui(request, tmp_path):
    with forge_running(tmp_path, request.param()) as webui:
        webui.files = Files(webui)
        yield webui


def _check(webui, prompt):
    (picture,) = webui.draw(prompt)
    wanted = expected(webui.base(), prompt, webui.files.content, in_float32=True)
    assert not differing(picture, {name: weight for name, weight in wanted.items() if name in picture})
    return picture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_host_that_adds_in_fp16_does_not_squeeze_the_weights_through_it(tmp_path, dtype):
    with forge_running(tmp_path, Neo(compute_dtype=torch.float16), dtype) as webui:
        webui.files = Files(webui)
        for prompt in ("<sara:alpha:0.8> <lora:beta:1>", "<sara:gamma:1>", ""):
            _check(webui, prompt)


@pytest.mark.parametrize("strength", [1, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rules", _HOSTS, ids=lambda rules: rules.name)
def test_the_same_bits_as_from_the_library(tmp_path, rules, dtype, strength):
    with forge_running(tmp_path, rules(), dtype) as webui:
        files, weights = Files(webui), webui.base()
        files.content["gamma"].apply_(weights, strength)
        webui.draw(f"<sara:gamma:{strength}>")
        found = webui.weights()
        assert not differing(found, {name: weight for name, weight in weights.items() if name in found})


def test_a_host_that_shows_errors_alone_has_our_lines(webui, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "level", logging.ERROR)
    webui.draw("<sara:nothing:1>")
    assert "no file of this name" in caplog.text


def test_an_embedding_is_changed_where_it_computes(webui):
    picture = _check(webui, "<sara:alpha:1>")
    assert not torch.equal(picture[_EMBEDDING], webui.base()[_EMBEDDING])


@pytest.mark.parametrize("rules", [Neo, Forge], ids=lambda rules: rules.name)
def test_the_first_prompt_of_a_model_is_encoded_as_every_later_one(tmp_path, rules):
    """The host makes the embeddings wider when it encodes: after a delta would have been rounded to fp16."""
    with forge_running(tmp_path, rules(), torch.float16) as webui:
        webui.files = Files(webui)
        for prompt in ("<sara:alpha:1>", "", "<sara:alpha:1>"):
            assert _check(webui, prompt)[_EMBEDDING].dtype == torch.float32


def test_before_a_training_every_weight_is_the_checkpoints_at_once(webui):
    webui.draw("<sara:alpha:1> <lora:plain:1>")
    webui.host().take_off_everything()
    found = webui.weights_now()
    assert not differing(found, {name: weight for name, weight in webui.base().items() if name in found})


def test_without_the_extension_for_loras(tmp_path):
    with forge_running(tmp_path, Neo(), with_lora=False) as webui:
        play(webui, SCENARIOS["a sara tag"], Files(webui))


def test_the_same_prompt_again_patches_nothing(webui):
    webui.draw("<sara:alpha:1>")
    chosen = webui.model.forge_objects_after_applying_lora
    before = chosen.unet, chosen.clip
    webui.draw("<sara:alpha:1>")
    chosen = webui.model.forge_objects_after_applying_lora
    assert (chosen.unet, chosen.clip) == before


def test_another_strength_for_the_text_encoders_leaves_the_diffusion_model(webui):
    webui.draw("<sara:alpha:1:1>")
    before = webui.model.forge_objects_after_applying_lora.unet
    _check(webui, "<sara:alpha:0.5:1>")
    assert webui.model.forge_objects_after_applying_lora.unet is before


def test_a_model_that_is_let_go_is_not_kept(webui):
    webui.draw("<sara:alpha:1>")
    model = weakref.ref(webui.model)
    webui.model = None
    gc.collect()
    assert model() is None


def test_a_nunchaku_model_gets_one_line(webui):
    if webui.rules.name not in ("Forge", "Forge Neo"):
        pytest.skip("has no such models")
    sys.modules["backend.args"].dynamic_args = type("Args", (), {"nunchaku": True})
    sys.modules["sara_webui.hosts.forge.backend"].dynamic_args = sys.modules["backend.args"].dynamic_args
    webui.draw("<sara:alpha:1>")
    assert any("Nunchaku" in line for line in webui.p.comments)
    assert not differing(webui.weights(), {name: webui.base()[name] for name in webui.weights()})


def test_weights_in_fp8_are_refused_by_name(webui):
    webui.draw("")
    layer = webui.model.forge_objects.unet.model.get_submodule("diffusion_model.out.2")
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    webui.draw("<sara:alpha:1>")
    assert any("float8_e4m3fn" in line and "fp16, bf16 or fp32" in line for line in webui.p.comments)


def test_an_error_of_ours_leaves_the_picture_without_deltas(webui, monkeypatch):
    webui.draw("<sara:alpha:1>")
    monkeypatch.setattr("sara_webui.prompted.fitted", lambda *_: 1 / 0)
    (picture,) = webui.draw("<sara:beta:1>")
    assert not differing(picture, {name: weight for name, weight in webui.base().items() if name in picture})
    assert any("ZeroDivisionError" in line for line in webui.p.comments)
    monkeypatch.undo()
    _check(webui, "<sara:alpha:1>")


def test_uninstalled_it_is_as_it_was(webui):
    webui.draw("<sara:alpha:1>")
    webui.host().uninstall()
    assert webui.model.forge_objects_after_applying_lora.unet is webui.model.forge_objects_original.unet
    own = webui.networks.load_networks, webui.networks.list_available_networks, webui.extra_networks.activate
    assert not any(hasattr(function, "__wrapped__") for function in own)
    webui.host().install_networks()
    _check(webui, "<sara:alpha:0.5>")


def test_a_host_of_another_family_is_not_taken_for_it(webui, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "modules.sd_checkpoint", module("modules.sd_checkpoint"))
    hosts = sys.modules["sara_webui.hosts"]
    monkeypatch.setattr(hosts, "_looked", False)
    assert hosts.current() is None
    assert "not known" in caplog.text
