"""AUTOMATIC1111's other models and states: SDXL, fp8, no extension for LoRAs, other extensions' doings, its end."""

import gc
import sys
import weakref

import pytest
import torch
from safetensors.torch import save_file

from sara_core import SparseDelta
from sara_core.delta import metadata as keys
from tests.webui.fakes.models import is_of_unet
from tests.webui.fakes.stand_ins import module
from tests.webui.fakes.webui import running
from tests.webui.reference import delta_of, differing, expected, lora_of
from tests.webui.scenarios import SCENARIOS, Files, play


@pytest.fixture
def webui(tmp_path):
    with running(tmp_path) as webui:
        webui.files = Files(webui)
        yield webui


def _check(webui, prompt, content):
    (picture,) = webui.draw(prompt)
    wanted = expected(webui.base(), prompt, content)
    assert not differing(picture, {name: weight for name, weight in wanted.items() if name in picture})


@pytest.mark.bits
@pytest.mark.parametrize("strength", [1, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_same_bits_as_from_the_library(tmp_path, dtype, strength):
    """Which are ComfyUI's and diffusers', as their tests say."""
    with running(tmp_path, dtype) as webui:
        files, weights = Files(webui), webui.base()
        files.content["gamma"].apply_(weights, strength)
        webui.draw(f"<sara:gamma:{strength}>")
        assert not differing(webui.weights(), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sdxl_with_both_its_text_encoders(tmp_path, dtype):
    """OpenCLIP has query, key and value in one weight, and its attention computes with its projection's weight."""
    with running(tmp_path, dtype, is_sdxl=True) as webui:
        delta = delta_of({name: tensor.float() for name, tensor in webui.base().items()}, 1)
        delta = SparseDelta(delta.entries, {keys.FAMILY: "SDXL"})
        delta.save(tmp_path / "sara" / "style.safetensors")
        assert any(name.startswith("text_encoders.clip_g.") for name in delta.entries)
        lora = lora_of({name: tensor for name, tensor in webui.base().items() if is_of_unet(name)}, 5)
        save_file(lora, tmp_path / "Lora" / "plain.safetensors")
        for prompt in (
            "<sara:style:0.8>", "<sara:style:0:1>", "<lora:style:1:0.3>", "<lora:style:1> <lora:plain:1>",
            "<lora:plain:1>", "<sara:style:0.8>", "",
        ):  # fmt: skip
            _check(webui, prompt, {"style": delta, "plain": lora})
            assert not webui.p.comments


def test_models_in_memory_whose_text_encoders_have_other_names(webui):
    """The delta is read once, and given the names of the one and of the other."""
    webui.limit = 2
    for is_sdxl, checkpoint, prompt in (
        (False, "one", ""), (True, "two", ""), (False, "one", "<sara:alpha:1>"), (True, "two", "<sara:alpha:1>"),
        (False, "one", "<sara:alpha:1>"), (False, "one", ""), (True, "two", ""),
    ):  # fmt: skip
        webui.is_sdxl, webui.chosen = is_sdxl, checkpoint
        _check(webui, prompt, webui.files.content)
        assert not webui.p.comments


@pytest.mark.parametrize("name", ["a sara tag", "hires", "another checkpoint", "rewritten", "another family"])
def test_without_the_extension_for_loras(tmp_path, name):
    with running(tmp_path, lora_extension=None) as webui:
        steps = [step for step in SCENARIOS[name] if "<lora:" not in f"{step}"]
        assert steps
        play(webui, steps, Files(webui))


def test_nothing_is_copied_of_a_layer_for_deltas_alone(webui):
    webui.draw("<sara:alpha:1> <lora:beta:1>")
    assert not any(getattr(layer, "network_weights_backup", None) for layer in webui.model.modules())


def test_what_the_host_copies_has_no_delta_in_it(webui):
    webui.draw("<sara:alpha:1>")
    webui.draw("<sara:alpha:1> <lora:plain:1>")
    base = webui.base()
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    layer = webui.model.get_submodule(name.removesuffix(".weight"))
    (copy,) = layer.network_weights_backup
    assert not differing({name: copy}, {name: base[name]})


def test_the_same_prompt_again_writes_nothing(webui):
    webui.draw("<sara:alpha:1>")
    versions = {name: weight._version for name, weight in webui.model.weights().items()}
    webui.draw("<sara:alpha:1>")
    assert versions == {name: weight._version for name, weight in webui.model.weights().items()}


def test_weights_in_fp8_are_refused_by_name(webui):
    webui.draw("")
    layer = webui.model.get_submodule("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    before = layer.weight.detach().view(torch.uint8).clone()
    host, p = webui.host(), webui.processing.StableDiffusionProcessingTxt2Img()
    webui.extra_networks.activate(p, webui.extra_networks.parse_prompt("<sara:alpha:1>")[1])
    assert any("float8_e4m3fn" in line and "fp16, bf16 or fp32" in line for line in p.comments)
    assert torch.equal(layer.weight.detach().view(torch.uint8), before)
    host.take_off_everything()


def test_what_something_else_has_written_is_left(webui, caplog):
    """Base values of another model's must not get into the weights."""
    webui.draw("<sara:alpha:1>")
    weight = webui.model.weights()["model.diffusion_model.out.2.weight"]
    with torch.no_grad():
        weight.copy_(torch.full_like(weight, 7.0))
    webui.draw("")
    assert torch.equal(weight, torch.full_like(weight, 7.0))
    assert caplog.text.count("has written 1 weight") == 1 and "out.2.weight" in caplog.text


def test_an_extension_that_replaces_the_hosts_functions_later(webui):
    """Whether it calls ours or not: ours is called first."""
    webui.draw("<sara:alpha:1>")
    ours = webui.networks.network_apply_weights
    webui.networks.network_apply_weights = lambda layer: ours(layer)
    for prompt in ("<sara:alpha:1> <lora:plain:1>", "<sara:alpha:0.8>", ""):
        _check(webui, prompt, webui.files.content)


def test_an_extension_that_takes_the_place_of_the_hosts(webui):
    webui.draw("<sara:alpha:1>")
    del webui.networks.network_restore_weights_from_backup
    (picture,) = webui.draw("<sara:gamma:1>")
    assert not differing(picture, {name: weight for name, weight in webui.base().items() if name in picture})
    assert any("Another extension" in line for line in webui.p.comments)
    webui.draw("")
    assert not webui.p.comments


def test_an_error_of_ours_leaves_the_picture_without_deltas(webui, monkeypatch):
    webui.draw("<sara:alpha:1>")

    def fail(*_):
        raise MemoryError("as asked for")

    monkeypatch.setattr("sara_webui.prompted.fitted", fail)
    webui.files.path("alpha").touch()  # to be read anew, under the tags of what the text encoders made before
    (picture,) = webui.draw("<sara:alpha:1>")
    assert not differing(picture, {name: weight for name, weight in webui.base().items() if name in picture})
    assert any("MemoryError" in line for line in webui.p.comments)
    monkeypatch.undo()
    _check(webui, "<sara:alpha:1>", webui.files.content)


def test_uninstalled_it_is_as_it_was(tmp_path):
    with running(tmp_path) as webui:
        files = Files(webui)
        webui.draw("<sara:alpha:1>")
        webui.host().uninstall()
        assert not differing(webui.weights(), webui.base())
        own = webui.networks.network_apply_weights, webui.extra_networks.activate, webui.sd_models.load_model_weights
        assert not any(hasattr(function, "__wrapped__") for function in own)
        assert "sara" not in webui.extra_networks.extra_network_registry
        webui.host().install_networks()
        _check(webui, "<sara:alpha:0.5>", files.content)


def test_a_model_that_is_let_go_is_not_kept(webui):
    webui.draw("<sara:alpha:1>")
    weight = weakref.ref(next(webui.model.parameters()))
    webui.sd_models.send_model_to_trash(webui.model)
    webui.model, webui.loaded = None, []
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("other", ["modules_forge", "backend", "ldm_patched", "modules.sd_checkpoint"])
def test_a_host_that_came_of_it_is_not_taken_for_it(webui, other, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, other, module(other))
    hosts = sys.modules["sara_webui.hosts"]
    monkeypatch.setattr(hosts, "_looked", False)
    assert hosts.current() is None
    assert "not known" in caplog.text
