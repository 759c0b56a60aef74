"""A base model under both sides' names: what of it can be joined, and what is refused by name."""

import pytest
import torch

from sara_core.delta import SparseEntry
from sara_core.errors import DeltaError
from sara_core.files.source import Source
from sara_core.models.base import Base, opened_base
from sara_core.models.comparison import model_weights
from tests.support import tiny_diffusers


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def flux():
    return weights_of(tiny_diffusers.flux())


def fused(base):
    """A weight of ComfyUI's that is several of diffusers', and these."""
    return next((name, names) for name, names in base._diffusers_names.items() if len(names) > 1)


def test_several_weights_become_one_and_come_apart_again(flux):
    base = Base(Source("base", tensors=flux))
    assert base.is_diffusers and base.shapes.keys() != base.diffusers_shapes.keys()
    name, names = fused(base)
    whole = base.weight(name)
    assert torch.equal(whole, torch.cat([flux[piece] for piece in names])) and base.shapes[name] == tuple(whole.shape)
    stored = Base(Source("stored", tensors={own: base.weight(own) for own in base.shapes}))
    assert not stored.is_diffusers and stored.elements == base.elements
    assert stored.diffusers_shapes == base.diffusers_shapes
    for piece in flux:
        assert torch.equal(stored.diffusers_weight(piece), base.diffusers_weight(piece))


def test_parts_that_are_not_of_one_weight_are_refused_by_name(flux):
    _, (*_, last) = fused(Base(Source("base", tensors=flux)))
    wider = {**flux, last: torch.zeros(flux[last].shape[0] * 2, *flux[last].shape[1:])}
    with pytest.raises(DeltaError, match=f"'{last}' in 'base' has a shape that its family of models does not have"):
        Base(Source("base", tensors=wider))


def test_a_weight_of_which_a_part_is_missing_is_refused_by_name(flux):
    name, missing = "single_blocks.1.linear1.weight", "single_transformer_blocks.1.attn.to_k.weight"
    fewer = {own: tensor for own, tensor in flux.items() if own != missing}
    with pytest.raises(DeltaError, match=f"'base' lacks a part of '{name}'. Download the model again"):
        Base(Source("base", tensors=fewer))


def test_entries_must_be_of_the_base(flux):
    base = Base(Source("base", tensors=flux))
    name, (first, *_) = fused(base)
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), tuple(flux[first].shape))
    assert list(base.from_diffusers({first: entry})) == [f"diffusion_model.{name}"]
    with pytest.raises(DeltaError, match="nowhere"):
        base.from_diffusers({"nowhere.weight": entry})
    with pytest.raises(DeltaError, match=rf"'{first}' has shape .* in 'base', but \[3, 3\] in the file"):
        base.from_diffusers({first: entry._replace(shape=(3, 3))})


def test_all_weights_are_a_mapping_with_the_prefix(flux):
    base = Base(Source("base", tensors=flux))
    weights = base.weights()
    assert len(weights) == len(base.shapes) == len(list(weights))
    assert base.elements == sum(map(torch.numel, weights.values()))
    name, _ = fused(base)
    assert torch.equal(weights[f"diffusion_model.{name}"], base.weight(name))


def test_what_is_no_base_is_refused(tmp_path):
    torch.save({}, tmp_path / "model.ckpt")
    with pytest.raises(DeltaError, match="'model.ckpt' is not a .safetensors"), opened_base(tmp_path / "model.ckpt"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(DeltaError, match="holds no diffusion model"), opened_base(tmp_path / "folder"):
        pass


@pytest.mark.parametrize("prefix, of_delta", [("", ""), ("diffusion_model.", "diffusion_model."),
                                              ("model.diffusion_model.", "diffusion_model.")])  # fmt: skip
def test_a_model_in_memory_keeps_its_own_names(prefix, of_delta):
    tensors = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b.weight": torch.zeros(2)}
    with model_weights(tensors, "mine") as weights:
        assert weights.diffusion == ["a.weight", "b.weight"] and weights.prefix == of_delta and not weights.others
        assert torch.equal(weights.tensor("a.weight"), torch.ones(2))


def test_what_a_checkpoint_in_memory_has_beside_its_model_is_no_part_of_it():
    vae = torch.ones(3)
    with model_weights({"model.diffusion_model.a.weight": torch.ones(2), "vae.x": vae}, "mine") as weights:
        assert weights.diffusion == ["a.weight"] and list(weights.others) == ["vae.x"]
        assert weights.others["vae.x"]() is vae
