"""Sparse backward on a WebUI's UNet: gradients equal to dense ones, every layer found, nothing left behind."""

import pytest
import torch
from torch import nn

from sara_core import UnsupportedModelError
from sara_core.backward.layer import is_attached
from sara_webui.training.settings import read_values, run_settings
from sara_webui.training.sparse_layers import sparse_layers
from tests.webui.training.fake_host import CHANNELS, WIDTH, FakeHost, digest


@pytest.fixture
def model(tmp_path):
    return FakeHost(tmp_path).model


def settings(**changes):
    return run_settings(read_values({"density": 0.3, **changes}), "data", 1)


def loss_of(model):
    generator = torch.Generator().manual_seed(1)
    noisy, noise = (torch.randn(2, CHANNELS, 4, 4, generator=generator) for _ in range(2))
    context = torch.randn(2, 5, WIDTH, generator=generator)

    def loss():
        predicted = model.predict(model.unet, noisy, torch.tensor([10, 900]), {"crossattn": context})
        return (predicted - noise).square().mean()

    return loss


def dense_gradients(model):
    loss_of(model)().backward()
    found = {name: weight.grad.clone() for name, weight in model.unet.named_parameters()}
    model.unet.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("more", [{}, {"include": "bias, norm, in_layers, to_"}, {"selection_rule": "gradient"}])
def test_gradients_are_dense_ones_at_the_chosen_elements(model, checkpointing, more):
    dense, before = dense_gradients(model), digest(model.unet)
    with sparse_layers(model, settings(**more), lambda: loss_of(model), checkpointing) as trained:
        loss_of(model)().backward()
        gradient, start = trained.store.values.grad, 0
        for segment in trained.store.support:
            mine = gradient[start : (start := start + len(segment))]
            rows = torch.repeat_interleave(torch.arange(segment.rows), segment.crow.diff().long())
            wanted = dense[segment.name.removeprefix("diffusion_model.")].flatten()
            assert torch.allclose(mine, wanted[rows * segment.columns + segment.col], rtol=1e-4, atol=1e-7)
        assert start == len(gradient) > 0
        assert all(weight.grad is None for weight in model.unet.parameters()), "no dense gradient is left"
    assert digest(model.unet) == before


def test_all_layers_train_though_the_forward_of_torchs_classes_was_exchanged_since(model, monkeypatch):
    """As the Lora extension does, and does anew with every Reload UI."""
    for kind in (nn.Linear, nn.Conv2d):
        original = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, original=original: original(self, x))
    with sparse_layers(model, settings(), None, False) as trained:
        layers = [part for part in model.unet.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
        assert len(layers) == 9 and all(map(is_attached, layers))
        assert len(trained.store.support) == 9
        loss_of(model)().backward()
        assert trained.store.unreached() == []


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_that_computes_in_a_way_of_its_own_is_refused_by_name(model):
    model.unet.middle_block.to_q = Scaled(WIDTH, WIDTH, bias=False)
    before = digest(model.unet)
    with pytest.raises(UnsupportedModelError, match=r"1 layers .*Scaled: middle_block.to_q"):
        with sparse_layers(model, settings(), None, False):
            pass
    assert digest(model.unet) == before


class Foreign(nn.Module):
    """A layer that is none of torch's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        return x @ self.weight.T


def test_a_weight_that_no_sparse_layer_has_is_an_error(model):
    model.unet.middle_block.to_q = Foreign()
    before = digest(model.unet)
    with pytest.raises(UnsupportedModelError, match="1 of 9 layers .*middle_block.to_q.weight"):
        with sparse_layers(model, settings(), None, False):
            pass
    assert digest(model.unet) == before
