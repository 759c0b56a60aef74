"""What a loaded model's weights are, in every precision: names, shapes, and values once they are dequantised."""

import pytest
import torch

from tests.support import quantised_models
from tests.support.toy_models import unload

NAMES = {
    "bf16": None, "fp8 e4m3": "fp8 e4m3", "fp8 e5m2": "fp8 e5m2", "fp8 scaled, old": "fp8 scaled",
    "fp8 scaled": "fp8 scaled", "fp8 scaled by 1": "fp8 scaled", "int8 convrot": "int8",
}  # fmt: skip
MULTIPLIED = ("int8", "int8 convrot", "convrot w4a4")  # on a CPU


@pytest.fixture(scope="module")
def precision(comfy):
    yield comfy.pack_module("nodes.host.precision")
    unload()


@pytest.mark.parametrize("kind", quantised_models.KINDS)
def test_weights_have_their_logical_shapes_and_values(precision, tmp_path, kind):
    model = quantised_models.model(kind, "Flux", tmp_path)
    expected = quantised_models.references(kind, "Flux")
    shapes = precision.logical_shapes(model)
    found = {name.removeprefix("diffusion_model.") for name in shapes if name.startswith("diffusion_model.")}
    assert found == expected.keys()
    for name, weight in expected.items():
        layer, _, parameter = f"diffusion_model.{name}".rpartition(".")
        result = precision.dequantised(model.model.get_submodule(layer), parameter)
        assert result.dtype == torch.float32 and type(result) is torch.Tensor
        assert result.shape == shapes[f"diffusion_model.{name}"] == weight.shape
        assert torch.linalg.vector_norm(result - weight) <= 1e-3 * torch.linalg.vector_norm(weight)


@pytest.mark.parametrize("kind", quantised_models.KINDS)
def test_precisions_have_names_and_ways_to_multiply(precision, tmp_path, kind):
    model = quantised_models.model(kind, "Flux", tmp_path)
    layer = model.model.get_submodule("diffusion_model.double_blocks.0.img_mlp.2")
    assert precision.precision_of(layer.weight) == NAMES.get(kind, kind)
    assert precision.is_known(layer.weight)
    assert precision.multiplies_quantised(layer) == (kind in MULTIPLIED)
    x = torch.randn(3, layer.in_features if hasattr(layer, "in_features") else layer.weight.shape[1])
    if kind not in ("bf16",) and not kind.startswith("GGUF"):
        with torch.inference_mode():
            before = layer(x)
            layer.weight_function = [lambda weight: weight]
            after = layer(x)
        assert torch.equal(before, after) == (kind not in MULTIPLIED)


def test_a_kind_that_nobody_knows_is_refused_by_its_name(precision, comfy):
    class Strange(torch.Tensor):
        pass

    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(torch.zeros(2, 2).as_subclass(Strange), requires_grad=False)
    assert not precision.is_known(layer.weight)
    errors = comfy.pack_module("sara_core.errors")
    with pytest.raises(errors.UnsupportedModelError, match="Strange"):
        precision.dequantised(layer)
