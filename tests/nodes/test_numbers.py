"""Whatever a program or another node hands to a node's inputs: a number that it can use, or an error with its name."""

import math

import pytest
import torch

from tests.project.test_house import NODES

# Of all other nodes there must be an input of the kind, or a sweep over them would find nothing wrong with none.
WITHOUT = {
    "number": {"SaRASave"},
    "text": {"SaRATrainOptions", "SaRATrainSamples", "SaRAApply", "SaRAExtract", "SaRAInspect"},
    "switch": NODES.keys() - {"SaRATrain", "SaRATrainOptions", "SaRADataset"},
}
NO_NUMBERS = [math.nan, math.inf, -math.inf, 1e308, -1e308, True, "1", "0,5", None, [1.0], {}, 10**400, torch.ones(2)]


def inputs(comfy, node_id, kind):
    from comfy_api.latest import io

    kinds = {"number": (io.Int.Input, io.Float.Input), "text": io.String.Input, "switch": io.Boolean.Input}
    found = [item for item in comfy.node_class(node_id).define_schema().inputs if isinstance(item, kinds[kind])]
    assert bool(found) is (node_id not in WITHOUT[kind])
    return found


def run(comfy, node_id, item, value):
    """Call a node's execute with one of its inputs, as the host does; nothing else is looked at before that one."""
    node = comfy.node_class(node_id)
    return node.execute(**{item.id: [value] if node.define_schema().is_input_list else value})


@pytest.mark.parametrize("node_id", NODES)
def test_every_numeric_input_refuses_what_is_no_number_by_its_name(comfy, pack_errors, node_id):
    for item in inputs(comfy, node_id, "number"):
        for value in [*NO_NUMBERS, item.min - 1, item.max + max(1, abs(item.max) * 1e-6)]:
            with pytest.raises(pack_errors.DeltaError, match=f"^{item.id} is .*: it takes a (whole )?number from"):
                run(comfy, node_id, item, value)


@pytest.mark.parametrize("node_id", NODES)
def test_every_text_and_switch_too(comfy, pack_errors, node_id):
    for kind, words in (("text", "text"), ("switch", "true or false")):
        for item in inputs(comfy, node_id, kind):
            for value in (None, 5, ["x"], {}, 1.5, b"x"):
                with pytest.raises(pack_errors.DeltaError, match=f"^{item.id} is .*: it takes {words}"):
                    run(comfy, node_id, item, value)


def test_the_sweep_finds_the_inputs(comfy):
    found = {(node_id, item.id) for node_id in NODES for item in inputs(comfy, node_id, "number")}
    assert len(found) >= 33
    assert {("SaRALoader", "strength"), ("SaRATrain", "learning_rate"), ("SaRATrainOptions", "weight_decay"),
            ("SaRATrainSamples", "cfg"), ("SaRAMerge", "keep"), ("SaRAInspect", "threshold")} <= found  # fmt: skip


@pytest.mark.parametrize("node_id, given", [
    ("SaRALoader", {"strength": math.nan}), ("SaRAApply", {"strength": math.nan}), ("SaRABake", {"strength": math.nan}),
    ("SaRABake", {"filename_prefix": "sara/"}), ("SaRASave", {"filename_prefix": "x" * 300}),
    ("SaRAConvert", {"filename_prefix": ""}), ("SaRAConvert", {"density": math.nan}), ("SaRAMerge", {"weights": "0,5"}),
    ("SaRAMerge", {"keep": math.inf}), ("SaRAMerge", {"blocks": "attn = 0,5"}), ("SaRAMerge", {"weights": "nan"}),
])  # fmt: skip
def test_what_would_fail_after_hours_is_refused_when_the_prompt_is_queued(comfy, node_id, given):
    node = comfy.node_class(node_id)
    assert isinstance(node.validate_inputs(**given), str)
    assert node.validate_inputs(**dict.fromkeys(given)) is True  # not known before the nodes above have run


def test_the_server_refuses_a_prompt_with_such_a_number(server):
    from devtools.comfyui.client import PromptError

    prompt = {
        "load": {"class_type": "SaRALoader", "inputs": {"sara_name": "x.safetensors", "strength": 1.0}},
        "save": {
            "class_type": "SaRASave",
            "inputs": {"delta": ["load", 1], "filename_prefix": "sara/", "values": "fp32"},
        },
    }
    with pytest.raises(PromptError, match="names a folder and no file"):
        server.client.queue(prompt)


def test_weights_of_a_merge_that_may_be_decimal_are_refused_with_what_was_read(comfy, pack_errors):
    for weights in ("0,5", "1,0", "0,6, 0,4"):
        read = f"'{weights[:3]}' may be {weights[0]}."
        with pytest.raises(pack_errors.DeltaError, match=f"'{weights}' are not numbers.*{read}"):
            comfy.execute("SaRAMerge", weights=weights, **{"deltas.delta_1": None})


@pytest.mark.parametrize("name", ["", ".", "..", "sara/", "sara//", "sara/.", "sara/..", "/"])
def test_a_prefix_that_names_a_folder_is_refused(comfy, pack_errors, name):
    folders = comfy.pack_module("nodes.host.folders")
    with pytest.raises(pack_errors.DeltaError, match="names a folder and no file in it|out of ComfyUI's output folder"):
        folders.check_prefix(name)


@pytest.mark.parametrize("name, words", [
    ("sara/...", "dots alone"), ("sara/.hidden", "hidden file"), ("sara/" + "x" * 300, "too long"),
    ("sara/" + "猫" * 80, "too long"), ("x" * 300 + "/a", "too long"), ("sara/a\tb", "no file's name can have"),
    ("sara/a\nb", "no file's name can have"), ("sara/a\x7f", "no file's name can"), ("a\0/b", "no file's name can"),
    ("sara/\udc80", "no file's name can have"), (".../x", "dots alone"), ("d/" * 2100 + "x", "too many folders"),
])  # fmt: skip
def test_a_prefix_that_no_file_can_have_is_refused_and_makes_nothing(comfy, pack_errors, name, words):
    folders, before = comfy.pack_module("nodes.host.folders"), sorted((comfy.base / "output").rglob("*"))
    with pytest.raises(pack_errors.DeltaError, match=f"^The filename_prefix '.*{words}"):
        folders.output_paths(name)
    assert sorted((comfy.base / "output").rglob("*")) == before


@pytest.mark.parametrize("name", ["sara/delta", "sara/" + "x" * 214, "größe 猫", "a.b", "sara/a b.", "con", "a:b",
                                  "./sara/x", "sara/../x", "%year%/x"])  # fmt: skip
def test_a_prefix_that_a_file_can_have(comfy, name):
    comfy.pack_module("nodes.host.folders").check_prefix(name)


def test_windows_names_are_refused_on_windows(comfy, pack_errors, monkeypatch):
    monkeypatch.setattr(comfy.pack_module("sara_core.files.names"), "IS_WINDOWS", True)
    folders = comfy.pack_module("nodes.host.folders")
    folders.check_prefix("sara/con")  # CON_00001_.safetensors is no device
    for name, words in {
        "con/x": "device", "sara/a:b": "holds :", "a?": "holds ?", "lpt1.x/y": "device", "a. /x": "dot or a space",
    }.items():  # fmt: skip
        with pytest.raises(pack_errors.DeltaError, match=words.replace("?", r"\?")):
            folders.check_prefix(name)


def test_no_name_of_a_delta_is_an_error_in_words(comfy, pack_errors):
    for name in (None, 5, ["x"]):
        with pytest.raises(pack_errors.DeltaError, match="There is no file"):
            comfy.execute("SaRALoader", sara_name=name, strength=1.0)


def test_a_delta_that_is_saved_where_no_loader_looks_is_said(comfy):
    folders = comfy.pack_module("nodes.host.folders")
    output = comfy.base / "output"
    assert folders.not_offered(output / "sara" / "deep" / "x.safetensors") == ""
    assert "begin the filename_prefix with sara/" in folders.not_offered(output / "x.safetensors")


@pytest.fixture
def pack_errors(comfy):
    return comfy.pack_module("sara_core.errors")
