"""What somebody has put around a model or a layer, which nobody knows: its names are in none of ComfyUI's models."""

import pytest
import torch

from sara_core import SaRA
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.diffusers_bridge import comfyui_delta
from sara_core.errors import UnsupportedModelError
from sara_core.models.base import Base
from sara_core.names.diffusers import put_around
from sara_core.files.source import Source
from tests.support import tiny_diffusers

MODELS = {
    name: getattr(tiny_diffusers, name)
    for name in ("unet", "sd3", "flux", "flux2", "wan", "z_image", "qwen_image", "motion_unet")
}


class Around(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.kept = module


def around_a_layer(model, number):
    layers = [
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "motion" not in name
    ]  # fmt: skip
    path, _, name = layers[number].rpartition(".")
    setattr(model.get_submodule(path), name, Around(model.get_submodule(layers[number])))
    return model


def changed(model):
    """A delta of all weights of layers."""
    one = torch.tensor([0], dtype=torch.int32), torch.ones(1)
    return SparseDelta({
        name: SparseEntry(*one, tuple(weight.shape)) for name, weight in model.state_dict().items()
        if name.endswith(".weight") and weight.dim() > 1
    })  # fmt: skip


WRAPPED = {
    "model": Around,
    "first layer": lambda model: around_a_layer(model, 0),
    "last layer": lambda model: around_a_layer(model, -1),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("name", MODELS)
def test_a_delta_gets_no_names_that_are_in_no_model_of_comfyuis(name, wrapped):
    model = WRAPPED[wrapped](MODELS[name]())
    with pytest.raises(UnsupportedModelError, match="put around this .* or around layers of it.*'kept'.*Take it off"):
        comfyui_delta(model, changed(model))


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_around_a_model_as_it_is(name):
    model = MODELS[name]()
    assert put_around({name: tuple(weight.shape) for name, weight in model.state_dict().items()}) is None
    assert len(comfyui_delta(model, changed(model)).entries) > 1


def test_what_a_model_has_beside_its_familys_weights_is_called_the_same_wherever_it_is_asked_for():
    """Training and files: motion modules are in no model of ComfyUI's, and no reason to lose the others' changes."""
    model = tiny_diffusers.motion_unet()
    delta = SaRA(model, density=0.1).delta()
    named = comfyui_delta(model, delta)
    base = Base(Source("base", tensors=dict(model.state_dict())))
    assert named.entries.keys() == base.from_diffusers(delta.entries).keys()
    assert sum(".motion_modules." in name for name in named.entries) > 10
    assert len(named.entries) == len(delta.entries)
