"""Layers and weights of kinds that nobody has prepared: tried, and trained or refused by name."""

import pytest
import torch

from tests.support import toy_models
from tests.support.toy_training import train

LAYER = "time_embed.2"


class Halved(torch.Tensor):
    """A weight that is kept as half of what it is."""

    @staticmethod
    def of(weight):
        return torch.nn.Parameter((weight.detach() / 2).as_subclass(Halved), requires_grad=False)

    def dequantize(self):
        return self.as_subclass(torch.Tensor) * 2

    def to(self, *args, **options):
        return torch.Tensor.to(self.as_subclass(torch.Tensor), *args, **options).as_subclass(Halved)


def a_kind(layer, cast=None, forward=None):
    """A class of layers with a weight of its own and its own way to compute."""

    class Strange(type(layer)):
        comfy_cast_weights = True

        def cast_bias_weight(self, input=None, dtype=None, device=None, bias_dtype=None):
            weight = self.weight.dequantize().to(device, dtype)
            return weight if cast is None else cast(weight), self.bias.to(device, bias_dtype)

        def forward_comfy_cast_weights(self, x):
            options = {"dtype": x.dtype, "device": x.device, "bias_dtype": x.dtype}
            output = torch.nn.functional.linear(x, *self.cast_bias_weight(**options))
            return output if forward is None else forward(output)

    return Strange


@pytest.fixture
def model(comfy):
    import comfy.model_management

    with torch.inference_mode():
        model = toy_models.sd15_model()
        layer = model.model.get_submodule(f"diffusion_model.{LAYER}")
        layer.weight = Halved.of(layer.weight)
        comfy.model_management.load_models_gpu([model])
    return model


def strange(model, **ways):
    layer = model.model.get_submodule(f"diffusion_model.{LAYER}")
    layer.__class__ = a_kind(layer, **ways)
    return layer


def test_a_kind_that_gives_its_weight_and_multiplies_with_it_is_trained(comfy, model, data):
    layer = strange(model)
    before = layer.weight, layer.weight.clone(), set(layer.__dict__)
    delta, trained = train(comfy, model, data, density=0.1)
    assert f"diffusion_model.{LAYER}.weight" in delta.entries
    with torch.inference_mode():
        plain = train(comfy, toy_models.sd15_model(), data, density=0.1)
    assert trained["loss"] == pytest.approx(plain[1]["loss"], rel=1e-5)
    assert layer.weight is before[0] and torch.equal(layer.weight, before[1]) and set(layer.__dict__) == before[2]


def test_a_weight_that_its_layer_keeps_dequantised_is_not_written(comfy, model, data):
    layer, kept = strange(model), model.model.get_submodule(f"diffusion_model.{LAYER}").weight.dequantize().clone()
    before = kept.clone()
    layer.__class__.cast_bias_weight = lambda self, **_: (kept, self.bias)
    train(comfy, model, data, density=0.1)
    assert torch.equal(kept, before)


def noisy(weight):
    return weight + 1e-3 * torch.randn_like(weight)


@pytest.mark.parametrize(
    ("ways", "reason"),
    [
        ({"cast": noisy}, "gives another weight each time"),
        ({"forward": lambda output: output.to(torch.float8_e4m3fn).to(output.dtype)}, "computes something else"),
        ({"forward": torch.Tensor.detach}, "has no gradient"),
        ({"forward": lambda output: output.detach() + 0 * output}, "has another gradient"),
        ({"cast": lambda weight: weight.to(torch.int8)}, "does not give its weight as floating numbers"),
        ({"cast": lambda weight: weight[:, :1]}, "does not give its weight as floating numbers"),
    ],
)
def test_a_kind_that_does_not_is_refused_by_name(comfy, model, data, ways, reason):
    layer = strange(model, **ways)
    before = layer.weight, layer.weight.clone(), set(layer.__dict__)
    refusal = f"The layer '{LAYER}' of this MODEL is a Strange with a weight in Halved.*{reason}"
    with pytest.raises(Exception, match=refusal):
        train(comfy, model, data, density=0.1)
    assert layer.weight is before[0] and torch.equal(layer.weight, before[1]) and set(layer.__dict__) == before[2]
