"""What the command line tells people to do with files that it does not take as they are: its own commands."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.__main__ import main
from sara_core.commands.remedies import REMEDIES
from sara_core.conversion.remedies import LIBRARY
from sara_core.delta import SparseDelta, SparseEntry


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with a LoRA, a model, something else and a delta with a LoRA beside; what it says."""
    monkeypatch.chdir(tmp_path)
    lora = {"a.lora_up.weight": torch.zeros(2, 2), "a.lora_down.weight": torch.zeros(2, 2)}
    save_file(lora, "lora.safetensors")
    save_file({"model.diffusion_model.a.weight": torch.ones(2, 2)}, "model.safetensors")
    save_file({"latent": torch.zeros(2)}, "else.safetensors")
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (2, 2))
    SparseDelta({"diffusion_model.a.weight": entry}).save("delta.safetensors")
    save_file({**load_file("delta.safetensors"), **lora}, "both.safetensors")

    def run(*arguments):
        assert main(arguments) == 1
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("arguments", [
    ("inspect", "{}"), ("merge", "out.safetensors", "delta.safetensors", "{}=0.5"),
    ("bake", "model.safetensors", "out.safetensors", "{}"),
    ("extract", "model.safetensors", "model.safetensors", "out.safetensors", "--support", "{}"),
], ids=lambda arguments: arguments[0])  # fmt: skip
@pytest.mark.parametrize("file, words", [
    ("lora.safetensors", "It looks like a LoRA. Make a delta of it first: python -m sara_core convert"),
    ("model.safetensors", "a whole checkpoint. Make a delta of it first: python -m sara_core extract"),
    ("else.safetensors", "Give a file that train, extract, merge or convert"),
    ("both.safetensors", "Get the delta in a file of its own"),
])  # fmt: skip
def test_a_file_that_is_no_delta_is_answered_with_a_command(said, arguments, file, words):
    error = said(*(argument.format(file) for argument in arguments))
    assert f"'{file}'" in error and words in error and "node" not in error


def test_a_missing_base_is_asked_for_by_its_option(said):
    error = said("convert", "lora.safetensors", "out.safetensors")
    assert error.endswith("made for: give it, a checkpoint or a diffusers folder, as --base.\n")


@pytest.mark.parametrize("remedies", [REMEDIES, LIBRARY], ids=["command line", "library"])
def test_no_host_is_named_and_nothing_is_without_a_remedy(remedies):
    assert remedies.keys() == LIBRARY.keys()
    for sentence in remedies.values():
        assert sentence.endswith(".") and not any(word in sentence for word in ("node", "Node", "ComfyUI", "SaRA "))
