"""The family of a model's file, told by its header."""

import torch
from safetensors.torch import load_file, save_file

from sara_core.models.base import opened_base
from sara_core.models.family import family_of_file


def test_the_demo_checkpoint_is_what_reading_it_as_a_base_says(checkpoint):
    with opened_base(checkpoint) as base:
        assert family_of_file(checkpoint) == base.family == "SD1.5"


def test_packed_weights_have_other_shapes_and_are_not_guessed_at(tmp_path, checkpoint):
    path = tmp_path / "model.safetensors"
    weights = load_file(checkpoint)
    model = {name: weight for name, weight in weights.items() if name.startswith("model.diffusion_model.")}
    save_file(model, path)
    assert family_of_file(path) == "SD1.5"
    packed = next(name for name, weight in model.items() if weight.dim() == 2)
    save_file({**model, packed: model[packed].to(torch.uint8)}, path)
    assert family_of_file(path) is None


def test_other_files_have_no_family(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 2)}, path)
    assert family_of_file(path) is None
    path.write_bytes(b"nothing")
    assert family_of_file(path) is None
    assert family_of_file(tmp_path / "gone.ckpt") is None
