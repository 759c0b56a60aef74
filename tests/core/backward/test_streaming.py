"""Weights that rest elsewhere and pass through the device one layer at a time: the same training, and no copy kept."""

import pytest
import torch
from torch import nn

from sara_core import SaRA
from sara_core.backward import access, streaming
from sara_core.backward.store import Store
from tests.support.small_models import (
    counted_memory, every_bit, loss_of, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip

pytestmark = pytest.mark.bits

EVERYTHING = ("*weight", "*bias")


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def trained(steps=3, dtype=torch.float32, **options):
    model = small_net(dtype=dtype)
    optimizer = SaRA(model, density=0.2, lr=1e-2, weight_gradient="csr", **options)
    for batch in small_batches(steps):
        loss_of(model, tuple(tensor.to(dtype) for tensor in batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("include", [(), EVERYTHING], ids=["layers", "everything"])
def test_streamed_training_gives_the_same_bits_as_training_in_place(dtype, include):
    in_place, expected = trained(dtype=dtype, include=include)
    streamed, optimizer = trained(dtype=dtype, include=include, stream_to="cpu")
    assert torch.equal(optimizer.values, expected.values) and optimizer.values.abs().max() > 0
    optimizer.detach()
    expected.detach()
    assert same_bits(every_bit(streamed), every_bit(in_place))


def test_resting_weights_are_written_when_training_is_over_and_not_before():
    before = every_bit(small_net())
    model, optimizer = trained(stream_to="cpu")
    assert same_bits(every_bit(model), before)
    optimizer.detach(restore=True)
    assert same_bits(every_bit(model), before)
    model, optimizer = trained(stream_to="cpu")
    optimizer.detach()
    assert not same_bits(every_bit(model), before)


def test_elements_can_be_chosen_by_gradient_while_streaming():
    model, plain = small_net(), small_net()
    batch, = small_batches(1)
    options = dict(count=20, rule="gradient")
    streamed = SaRA(model, **options, loss=lambda: loss_of(model, batch), stream_to="cpu")
    expected = SaRA(plain, **options, loss=lambda: loss_of(plain, batch))
    chosen, wanted = (
        {segment.name: segment.flat().tolist() for segment in optimizer.store.support}
        for optimizer in (streamed, expected)
    )
    assert chosen == wanted


@pytest.mark.parametrize("options", [{}, {"stream_to": "cpu"}], ids=["in place", "streamed"])
def test_a_model_that_could_not_be_attached_is_as_it_was(monkeypatch, options):
    model, bind, moved = small_net(), Store.bind, []
    before, classes = every_bit(model), [type(module) for module in model.modules()]

    def bind_twice(store, number, *others):
        if number == 2:
            raise torch.OutOfMemoryError
        bind(store, number, *others)

    monkeypatch.setattr(Store, "bind", bind_twice)
    monkeypatch.setattr("sara_core.training.optimizer.move_back", moved.append)
    with pytest.raises(torch.OutOfMemoryError):
        SaRA(model, density=0.2, include=EVERYTHING, **options)
    assert same_bits(every_bit(model), before) and [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters()) and len(moved) == 1
    monkeypatch.undo()
    SaRA(model, density=0.2, include=EVERYTHING)


LAYERS, WIDTH, TOKENS = 5, 256, 4


def test_a_streamed_copy_lives_as_long_as_its_layer_computes():
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]).requires_grad_(False)
    optimizer = SaRA(model, density=0.01, weight_gradient="csr", stream_to="cpu")
    x = torch.randn(TOKENS, WIDTH)
    model(x).sum().backward()
    optimizer.zero_grad()
    weight, activation, vector = 4 * WIDTH * WIDTH, 4 * TOKENS * WIDTH, 4 * optimizer.store.support.nnz
    with counted_memory() as memory:
        output = model(x)
    assert memory.left <= (LAYERS + 1) * activation  # what is saved for the backward
    assert weight <= memory.peak < 2 * weight
    with counted_memory() as memory:
        output.sum().backward()
    assert memory.left <= vector + 64
    assert weight <= memory.peak < 2 * weight


def test_only_the_weights_of_layers_rest():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1))
    before = every_bit(model)
    moved = streaming.move_all_but(model, [model[0], model[2]], "meta")
    resting = {name for name, tensor in model.state_dict().items() if not tensor.is_meta}
    assert resting == {"0.weight", "2.weight"}
    streaming.move_back(moved)
    assert same_bits(every_bit(model), before)


def test_a_layer_streams_to_the_device_of_its_input():
    module = nn.Linear(4, 6)
    with access.Streamed(None).tensors(module, torch.empty(1, device="meta")) as (weight, _):
        assert weight.is_meta and weight.shape == module.weight.shape


def test_what_moves_to_the_device_carries_no_graph_of_where_it_was():
    model = nn.Module()
    model.register_buffer("scale", torch.ones(2, requires_grad=True) * 2)
    replaced = streaming.move_all_but(model, (), "meta")
    assert model.scale.is_meta and model.scale.grad_fn is None and not model.scale.requires_grad
    streaming.move_back(replaced)
    assert model.scale.grad_fn is not None
