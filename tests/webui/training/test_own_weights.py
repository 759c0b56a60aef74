"""A UNet with weights of our own: gradients as if the host's were no inference tensors, and everything of the host's
back afterwards."""

import pytest
import torch
from torch import nn

from sara_core.backward.attach import layers
from sara_webui.training.checkpointing import checkpointed
from sara_webui.training.own_weights import own_weights


class NeosLinear(nn.Linear):
    def forward(self, x):
        raise AssertionError("the host's way to its weights")


class ForgesLinear(nn.Module):
    """As Forge's, it is no torch.nn.Linear, and has its weights when they have been loaded."""

    forward = NeosLinear.forward

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = self.bias = None
        for name, weight in nn.Linear(in_features, out_features).named_parameters():
            setattr(self, name, weight)


class BasicTransformerBlock(nn.Module):
    """As the host's, it adds into what it was given."""

    def __init__(self, linear):
        super().__init__()
        self.norm, self.to_out = nn.LayerNorm(4), linear(4, 4)

    def forward(self, x, context=None):
        x += self.to_out(self.norm(x))
        x += self.to_out(self.norm(x))
        return x


_OPERATIONS = "hosts.operations"
LINEARS = NeosLinear, ForgesLinear
for kind in LINEARS:
    kind.__module__, kind.__name__ = _OPERATIONS, "Linear"
of_each = pytest.mark.parametrize("linear", LINEARS, ids=["Forge Neo", "Forge"])


def _block(linear):
    torch.manual_seed(0)
    with torch.inference_mode():
        return nn.Sequential(BasicTransformerBlock(linear)), torch.randn(2, 3, 4)


def _wanted(block, x):
    """The gradients of the weights and of what was given, of the same without anything in place."""
    norm, out = block[0].norm, block[0].to_out
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in block.named_parameters()}
    given = x.clone().requires_grad_()
    y = given
    for _ in range(2):
        normed = nn.functional.layer_norm(y, (4,), weights["0.norm.weight"], weights["0.norm.bias"], norm.eps)
        y = y + nn.functional.linear(normed, weights["0.to_out.weight"], weights["0.to_out.bias"])
    y.square().sum().backward()
    assert out.weight.is_inference()
    return {**{name: weight.grad for name, weight in weights.items()}, "given": given.grad}


@of_each
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_go_through_all_of_it(linear, checkpointing):
    block, x = _block(linear)
    x = x.clone()
    wanted = _wanted(block, x)
    with own_weights(block, torch.device("cpu"), _OPERATIONS) as unet:
        for weight in unet.parameters():
            weight.requires_grad_()
        given = x.clone().requires_grad_()
        if checkpointing:
            with checkpointed(unet):
                unet(given * 1).square().sum().backward()
        else:
            unet(given * 1).square().sum().backward()
        found = {**{name: weight.grad for name, weight in unet.named_parameters()}, "given": given.grad}
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@of_each
def test_all_of_the_hosts_is_back(linear):
    block, _ = _block(linear)
    before = dict(block.named_parameters()), {name: type(part) for name, part in block.named_modules()}
    with pytest.raises(ZeroDivisionError), own_weights(block, torch.device("cpu"), _OPERATIONS) as unet:
        assert not any(weight.is_inference() for weight in unet.parameters())
        assert type(unet[0].to_out) is nn.Linear and [*layers(unet)] == ["0.to_out"]
        1 / 0
    after = dict(block.named_parameters()), {name: type(part) for name, part in block.named_modules()}
    assert after[1] == before[1] and all(after[0][name] is weight for name, weight in before[0].items())
    assert not block[0].norm._forward_pre_hooks
