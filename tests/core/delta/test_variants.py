"""A delta on another variant of its model: the first layer's change is left out and named, and nothing else ever is."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import DeltaError, SparseDelta, SparseEntry
from sara_core.delta.variants import left_out, takes_other_inputs
from sara_core.extraction.extract import extract_with_report
from sara_core.models.bake import bake

# First layer → its shape in the model and in a variant: for inpainting, depth, Flux Fill, Wan i2v, SD in diffusers.
FIRST = {
    "input_blocks.0.0.weight": ((8, 4, 3, 3), (8, 9, 3, 3)),
    "diffusion_model.input_blocks.0.0.weight": ((8, 4, 3, 3), (8, 5, 3, 3)),
    "model.diffusion_model.img_in.weight": ((8, 64), (8, 384)),
    "diffusion_model.patch_embedding.weight": ((8, 16, 1, 2, 2), (8, 36, 1, 2, 2)),
    "net.x_embedder.proj.1.weight": ((8, 68), (8, 72)),
    "conv_in.weight": ((8, 9, 3, 3), (8, 4, 3, 3)),
    "x_embedder.weight": ((8, 64), (8, 128)),
}


def entry(shape, seed=0):
    return SparseEntry(torch.tensor([1, 7], dtype=torch.int32), torch.tensor([0.5, -0.25]), shape)


def case(first):
    """A delta by the names of the model, and the weights of its variant."""
    other = f"{first.rpartition('.weight')[0].rpartition('.')[0]}.blocks.0.weight".lstrip(".")
    own, variant = FIRST[first]
    delta = SparseDelta({first: entry(own), other: entry((4, 4))})
    return delta, other, {first: torch.randn(variant), other: torch.randn(4, 4)}


@pytest.mark.parametrize("first", FIRST)
def test_applying_leaves_the_first_layer_out_and_warns_by_name(first):
    delta, other, weights = case(first)
    before = {name: weight.clone() for name, weight in weights.items()}
    with pytest.warns(UserWarning, match=rf"Left out: the change of '{first}'.* {weights[first].shape[1]} channels"):
        handle = delta.apply_(weights)
    assert torch.equal(weights[first], before[first])
    torch.testing.assert_close(
        weights[other].view(-1)[[1, 7]], before[other].view(-1)[[1, 7]] + torch.tensor([0.5, -0.25])
    )
    handle.remove()
    assert torch.equal(weights[other], before[other])


@pytest.mark.parametrize("first", FIRST)
def test_baking_leaves_it_out_and_reports_it(tmp_path, first):
    delta, other, weights = case(first)
    save_file(weights, tmp_path / "base.safetensors")
    report = bake(tmp_path / "base.safetensors", tmp_path / "out.safetensors", delta)
    baked = load_file(tmp_path / "out.safetensors")
    assert torch.equal(baked[first], weights[first]) and not torch.equal(baked[other], weights[other])
    assert report.changes == 2 and first in report.text()


def test_a_support_leaves_it_out_and_the_report_says_so():
    delta, other, base = case("diffusion_model.patch_embedding.weight")
    tuned = {name: weight + 1 for name, weight in base.items()}
    extracted, report = extract_with_report(base, tuned, support=delta)
    assert extracted.entries.keys() == {other}
    assert "Left out: the change of 'diffusion_model.patch_embedding.weight'" in report.text()


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (9, 9, 3, 3), (8, 9, 1, 1), (8, 36)])
def test_another_difference_than_the_inputs_of_the_first_layer_is_refused(tmp_path, shape):
    first = "diffusion_model.input_blocks.0.0.weight"
    name = "diffusion_model.blocks.0.weight"
    delta = SparseDelta({first: entry((8, 4, 3, 3)), name: entry((4, 4))})
    weights = {first: torch.zeros(shape), name: torch.zeros(4, 4)}
    if shape == (8, 4, 3, 3):  # the first layer is right, and another one takes more channels
        weights[name] = torch.zeros(4, 5)
    with pytest.raises(DeltaError, match="has shape"):
        delta.apply_(weights)
    save_file(weights, tmp_path / "base.safetensors")
    with pytest.raises(DeltaError, match="has shape"):
        bake(tmp_path / "base.safetensors", tmp_path / "out.safetensors", delta)


def test_nothing_is_left_out_where_more_does_not_fit_or_nothing_is_left():
    first, other = "input_blocks.0.0.weight", "blocks.0.weight"
    delta = SparseDelta({first: entry((8, 4, 3, 3)), other: entry((4, 4))})
    with pytest.raises(DeltaError, match="blocks.0.weight"):
        delta.apply_({first: torch.zeros(8, 9, 3, 3), other: torch.zeros(4, 6)})
    alone = {first: entry((8, 4, 3, 3))}
    assert left_out(alone, {first: (8, 9, 3, 3)}) == {}
    with pytest.raises(DeltaError, match="has shape"):
        SparseDelta(alone).apply_({first: torch.zeros(8, 9, 3, 3)})


def test_what_has_one_side_only_has_no_inputs():
    assert not takes_other_inputs((8,), (8,)) and not takes_other_inputs((8,), (9,))
    assert takes_other_inputs((8, 4), (8, 9)) and not takes_other_inputs((8, 4), (9, 4))
