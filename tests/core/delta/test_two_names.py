"""One weight under two names: refused with both, wherever one of the changes would be lost."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import SparseDelta, SparseEntry, merge
from sara_core.delta.translate import to_comfy
from sara_core.errors import DeltaError
from sara_core.models.bake import bake
from sara_core.names.parts import Part


def entry(position=0, value=1.0, shape=(4,)):
    return SparseEntry(torch.tensor([position], dtype=torch.int32), torch.tensor([value]), shape)


PAIRS = [
    ("x", "x.weight"),
    ("diffusion_model.x.weight", "x.weight"),
    ("diffusion_model.x.weight", "model.diffusion_model.x.weight"),
    ("diffusion_model.b.img_attn.norm.query_norm.scale", "diffusion_model.b.img_attn.norm.query_norm.weight"),
    ("model.diffusion_model.x", "diffusion_model.x.weight"),
    ("b.key_norm.scale", "diffusion_model.b.key_norm.weight"),
]


@pytest.mark.parametrize("first, second", PAIRS)
def test_a_delta_with_two_names_of_a_weight_is_refused_with_both(first, second):
    with pytest.raises(DeltaError, match=f"one weight twice, as '{first}' and as '{second}'"):
        SparseDelta({first: entry(), second: entry(1)})
    with pytest.raises(DeltaError, match="one weight twice"):
        SparseDelta({first: entry()}) + SparseDelta({second: entry(1)})


@pytest.mark.parametrize("names", [
    ["x.weight", "x.bias"], ["x", "x.y"], ["a_norm.weight", "b_norm.scale"], ["norm.scale", "norm.weight"],
    ["diffusion_model.x.weight", "text_model.x.weight"],
])  # fmt: skip
def test_other_weights_may_have_names_that_are_alike(names):
    assert len(SparseDelta({name: entry() for name in names}).entries) == 2


def renamed_in_the_file(path, old, new, head=None):
    tensors = load_file(path)
    tensors = {name.replace(f"{old}.sara1", f"{new}.sara1"): tensor for name, tensor in tensors.items()}
    if head is not None:
        tensors[f"{new}.sara1_head"][0] = head
    save_file(tensors, path)


@pytest.mark.parametrize("new, head", [("x.weight", 1), ("diffusion_model.x", None), ("model.diffusion_model.x", None)])
def test_a_file_with_two_names_of_a_weight_is_refused(tmp_path, new, head):
    path = tmp_path / "two.safetensors"
    SparseDelta({"x.weight": entry(), "other.weight": entry(1)}).save(path)
    renamed_in_the_file(path, "other", new, head)
    with pytest.raises(DeltaError, match="one weight twice"):
        SparseDelta.load(path)


def test_two_names_that_are_one_in_this_model_are_refused_where_it_is_known(tmp_path):
    """The delta's own list of names may have been changed since it was checked."""
    delta = SparseDelta({"q_norm.weight": entry()})
    delta.entries["q_norm.scale"] = entry(1)
    weights = {"q_norm.scale": torch.zeros(4)}
    message = "'q_norm.weight' and 'q_norm.scale' are both 'q_norm.scale' in the"
    with pytest.raises(DeltaError, match=message):
        delta.apply_(weights)
    save_file(weights, tmp_path / "base.safetensors")
    with pytest.raises(DeltaError, match=message):
        bake(tmp_path / "base.safetensors", tmp_path / "out.safetensors", delta)
    assert not weights["q_norm.scale"].any() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("other, is_refused", [
    (entry(), False), (entry(value=2.0), True), (entry(position=1), True),
])  # fmt: skip
def test_names_of_one_tied_weight_must_be_changed_alike_in_positions_and_in_values(other, is_refused):
    shared = torch.zeros(4)
    weights, delta = {"a.weight": shared, "b.weight": shared}, SparseDelta({"a.weight": entry(), "b.weight": other})
    if is_refused:
        with pytest.raises(DeltaError, match="are one weight in this model, but the delta changes them differently"):
            delta.apply_(weights)
        assert not shared.any()
    else:
        delta.apply_(weights)
        assert shared.tolist() == [1, 0, 0, 0]


def test_two_diffusers_names_of_one_part_are_refused():
    parts = {"a.to_q": Part("qkv", 0, 1, 3), "a.to_k": Part("qkv", 1, 1, 3), "b.to_qk": Part("qkv", 0, 2, 3)}
    assert list(to_comfy({"a.to_q": entry(), "a.to_k": entry()}, parts)) == ["qkv"]
    with pytest.raises(DeltaError, match="'a.to_k' and 'b.to_qk' are both 'qkv'"):
        to_comfy({"a.to_k": entry(), "b.to_qk": entry(0, 1.0, (8,))}, parts)


@pytest.mark.parametrize("first, second", [pair for pair in PAIRS if pair[0].endswith(("weight", "scale"))])
def test_merging_finds_a_weight_under_another_name(first, second):
    merged = merge([SparseDelta({first: entry(0)}), SparseDelta({second: entry(1)})])
    assert list(merged.entries) == [first] and merged.nnz == 2


def test_the_changes_of_a_merge_may_be_too_large_for_their_file_but_are_not_called_damaged():
    big = SparseDelta({"x.weight": entry(0, 3e38)})
    for made in (lambda: merge([big, big]), lambda: merge([big], weights=3), lambda: big * 2, lambda: big + big,
                 lambda: merge([big, big], method="mean", weights=1e10)):  # fmt: skip
        with pytest.raises(DeltaError, match="'x.weight' come out larger than float32 can hold. Lower the weights"):
            made()
