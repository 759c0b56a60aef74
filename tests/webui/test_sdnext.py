"""SD.Next: tags change weights exactly, beside LoRAs that it adds and subtracts, and nothing is left of them."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from tests.webui.fakes.sdnext import sdnext_running
from tests.webui.reference import differing
from tests.webui.scenarios import SCENARIOS, Files, play

pytestmark = pytest.mark.bits

_WITHOUT_LORAS = (
    "a sara tag", "a lora tag", "both kinds of tags", "strengths of their own", "strength 0", "several",
    "a missing name", "a broken file", "no delta", "no number", "too strong",
)  # fmt: skip


_CASES = [(name, torch.float32) for name in _WITHOUT_LORAS]
_CASES += [("several", dtype) for dtype in (torch.float16, torch.bfloat16)]


@pytest.fixture
def webui(tmp_path):
    with sdnext_running(tmp_path) as webui:
        webui.files = Files(webui)
        yield webui


@pytest.mark.parametrize(("name", "dtype"), _CASES, ids=str)
def test_weights_are_the_references(tmp_path, name, dtype):
    with sdnext_running(tmp_path, dtype) as webui:
        assert webui.host().name == "SD.Next"
        play(webui, SCENARIOS[name], Files(webui))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_beside_loras_the_base_is_what_it_is_without_deltas(tmp_path, dtype):
    """The host's own undo does not give back every bit, with deltas or without; deltas change nothing of that."""
    prompts = ("<lora:plain:0.7>{}", "{}", "<lora:other:1>{} <lora:plain:0.3>", "<lora:plain:0.3>{}", "{}")
    left = []
    for delta in (" <sara:alpha:0.8> <lora:beta:0.5>", ""):
        with sdnext_running(tmp_path, dtype) as webui:
            Files(webui)
            for prompt in prompts:
                webui.draw(prompt.format(delta))
            webui.draw("nothing")
            left.append(webui.weights())
    assert not differing(*left)
    assert differing(left[0], {name: tensor for name, tensor in webui.base().items() if name in left[0]})


def test_a_delta_lies_on_what_the_loras_have_made(webui):
    webui.draw("<lora:plain:1>")
    under = webui.weights()
    (picture,) = webui.draw("<lora:plain:1> <sara:gamma:1>")
    webui.files.content["gamma"].apply_(under, 1.0)
    assert not differing(picture, under)


def test_a_delta_is_off_before_its_weights_go(webui):
    webui.draw("<sara:alpha:1>")
    old = webui.model
    webui.draw("<sara:alpha:1>", checkpoint="two")
    assert not differing(old.weights(), {name: webui.base("one")[name] for name in old.weights()})


def test_loras_that_are_taken_off_after_each_picture(webui):
    webui.shared.opts.lora_force_reload = True
    (picture,) = webui.draw("<lora:plain:1> <sara:alpha:0.8>")
    (again,) = webui.draw("other <sara:alpha:0.8>")
    assert differing(picture, again)
    webui.draw("")
    assert not any(torch.isnan(weight).any() for weight in webui.weights().values())


@pytest.mark.parametrize("is_for_text", [False, True])
def test_before_a_training_every_lora_comes_off(webui, is_for_text):
    webui.shared.opts.lora_apply_te = is_for_text
    webui.draw("<lora:plain:1> <sara:alpha:0.8>")
    webui.shared.opts.lora_apply_te = False  # whatever has become of the setting meanwhile
    webui.host().take_off_everything()
    assert webui.loras == [] and not webui.host()._weights.names()


def test_what_was_encoded_is_forgotten_with_the_delta_of_a_rewritten_file(webui):
    play(webui, SCENARIOS["rewritten"][:3], webui.files)


def test_weights_that_are_not_in_memory_get_one_line(webui):
    webui.draw("")
    webui.model.unet.to("meta")
    webui.p = webui.processing.StableDiffusionProcessingTxt2Img()
    webui.p.text, webui.p.network_data = webui.extra_networks.parse_prompt("<sara:alpha:1>")
    webui.extra_networks.activate_filtered(webui.p)
    assert any("offload mode" in line for line in webui.p.comments)


def test_a_line_is_below_the_picture_and_in_the_console(webui):
    webui.draw("<sara:nowhere:1>")
    line, = (f"SaRA: {line}" for line in webui.host()._said)
    assert webui.below == line and webui.console.lines == [line]
    webui.draw("<sara:alpha:1>")
    assert webui.below == "" and webui.console.lines == [line]


def test_it_has_the_tab_and_the_http_interface(webui):
    assert len(webui.callbacks["ui_tabs"]) == len(webui.callbacks["app_started"]) == 1


def test_the_http_interface_knows_the_users_that_the_hosts_own_knows(webui, monkeypatch):
    file, added = webui.folder / "users", []
    file.write_text("bob:b,c:d\n")
    api = importlib.import_module("sara_webui.api.a1111")
    monkeypatch.setattr(api, "add_routes", lambda app, credentials: added.append(credentials))
    webui.shared.cmd_opts = SimpleNamespace(api=True, api_auth=None, auth='"ann:secret, eve:x"', auth_file=str(file))
    webui.callbacks["app_started"][0](None, None)
    assert added == [{"ann": "secret", "eve": "x", "bob": "b,c:d"}]


def test_uninstalled_it_is_as_it_was(webui):
    webui.draw("<sara:alpha:1>")
    webui.host().uninstall()
    assert not differing(webui.weights(), {name: webui.base()[name] for name in webui.weights()})
    own = (webui.extra_networks.activate, webui.extra_networks.deactivate, webui.sd_models.unload_model_weights,
           webui.processing.get_processed)  # fmt: skip
    assert not any(hasattr(function, "__wrapped__") for function in own)
