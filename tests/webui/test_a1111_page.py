"""AUTOMATIC1111's page: which deltas it lists, what it writes beside a picture, and what pasting makes of that."""

import os

import pytest

from sara_core import SparseDelta
from sara_core.delta import metadata as keys
from tests.webui.fakes.webui import running
from tests.webui.reference import delta_of, differing, expected
from tests.webui.scenarios import Files


@pytest.fixture
def webui(tmp_path):
    with running(tmp_path) as webui:
        webui.files = Files(webui)
        yield webui


def _cards(webui):
    webui.networks.list_available_networks()
    return webui.networks.available_networks


def test_deltas_of_both_folders_are_among_the_cards(webui):
    assert {"alpha", "beta", "gamma", "plain", "other"} <= _cards(webui).keys()


def test_a_file_in_models_sara_that_is_no_delta_is_no_card(webui):
    assert "plain_file" not in _cards(webui)


def test_of_two_files_of_one_name_the_hosts_own_is_the_card(webui):
    (webui.folder / "sara" / "plain.safetensors").write_bytes(webui.files.path("alpha").read_bytes())
    assert _cards(webui)["plain"].filename == str(webui.files.path("plain"))


@pytest.mark.parametrize(
    ("family", "version"),
    [("SDXL", "SDXL"), ("SDXL Refiner", "SDXL"), ("SD1.5", "SD1"), ("SD2.1", "SD2"), ("Flux", "Unknown"),
     (None, "Unknown")],
)  # fmt: skip
def test_a_card_is_shown_for_the_family_of_its_delta(webui, family, version):
    delta = webui.files.content["alpha"]
    SparseDelta(delta.entries, {keys.FAMILY: family} if family else {}).save(webui.files.path("alpha"))
    assert _cards(webui)["alpha"].sd_version.name == version


def test_a_loras_card_is_shown_as_before(webui):
    assert _cards(webui)["plain"].sd_version.name == "SD1"


def test_a_picture_says_which_files_it_was_drawn_with(webui):
    webui.draw("<sara:alpha:0.8> <lora:beta:0.4> <lora:plain:1>")
    line = webui.p.extra_generation_params["SaRA hashes"]
    assert [pair.split(": ")[0] for pair in line.split(", ")] == ["alpha", "beta"]
    assert all(len(pair.split(": ")[1]) == 12 for pair in line.split(", "))


def test_both_passes_are_said(webui):
    webui.draw("<sara:alpha:1>", hr_prompt="<sara:gamma:1>")
    assert webui.p.extra_generation_params["SaRA hashes"].count(":") == 2


def test_a_delta_that_was_left_out_is_not_said(webui):
    webui.draw("<sara:xl:1>")
    assert "SaRA hashes" not in webui.p.extra_generation_params


def test_a_rewritten_file_has_another_hash(webui):
    webui.draw("<sara:alpha:1>")
    before = webui.p.extra_generation_params["SaRA hashes"]
    webui.files.path("alpha").write_bytes(webui.files.path("gamma").read_bytes())
    webui.draw("<sara:alpha:1>")
    assert webui.p.extra_generation_params["SaRA hashes"] != before


def _drawn(webui, prompt):
    webui.draw(prompt)
    return {"Prompt": f"a cat {prompt}", "SaRA hashes": webui.p.extra_generation_params["SaRA hashes"]}


def test_pasting_gives_back_the_prompt(webui):
    said = _drawn(webui, "<sara:alpha:0.8> <lora:beta:0.4>")
    assert webui.paste("", dict(said)) == said


def test_pasting_finds_a_file_that_was_renamed(webui):
    said = _drawn(webui, "<sara:alpha:0.8> <lora:beta:0.4>")
    os.rename(webui.files.path("alpha"), webui.folder / "sara" / "better.safetensors")
    assert webui.paste("", said)["Prompt"] == "a cat <sara:better:0.8> <lora:beta:0.4>"


def test_pasting_leaves_what_is_not_here(webui):
    said = _drawn(webui, "<sara:alpha:0.8>")
    os.remove(webui.files.path("alpha"))
    assert webui.paste("", dict(said)) == said
    assert webui.paste("", {"Prompt": "a <lora:plain:1>"}) == {"Prompt": "a <lora:plain:1>"}


def test_pasting_does_the_second_passs_prompt_too(webui):
    said = {**_drawn(webui, "<sara:alpha:0.8>"), "Hires prompt": "<sara:alpha:0.5>"}
    os.rename(webui.files.path("alpha"), webui.folder / "sara" / "better.safetensors")
    assert webui.paste("", said)["Hires prompt"] == "<sara:better:0.5>"


def test_a_file_that_comes_later_is_found(webui):
    webui.draw("<sara:new:1>")
    delta = delta_of(webui.base(), 9)
    delta.save(webui.folder / "Lora" / "new.safetensors")
    for tag in ("<sara:new:1>", "<lora:new:1>"):
        (picture,) = webui.draw(tag)
        assert not webui.p.comments
        assert not differing(picture, _only(expected(webui.base(), tag, {"new": delta}), picture))


def test_a_name_may_have_its_folder(webui):
    folder = webui.folder / "sara" / "people"
    folder.mkdir()
    os.rename(webui.files.path("alpha"), folder / "alpha.safetensors")
    (picture,) = webui.draw("<sara:people/alpha:1>")
    assert not webui.p.comments
    assert not differing(picture, _only(expected(webui.base(), "<sara:alpha:1>", webui.files.content), picture))


def _only(weights, picture):
    return {name: weight for name, weight in weights.items() if name in picture}
