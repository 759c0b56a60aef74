"""Biases, norms, embeddings and a module's own parameters train like weights, and leave no trace."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sara_core import SaRA, TrainingError, UnsupportedModelError
from sara_core.memory.simulation import simulated
from tests.support.small_models import (
    MaskedTraining, attached, counted_memory, every_bit, loss_of, masked_gradient, relative_error, repeatable,
    same_bits, small_batches, small_net,
)  # fmt: skip

WAYS = pytest.mark.parametrize("copies", [False, True], ids=["in place", "after a copy"])
EVERYTHING = "all layers, biases and norms"


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


class Scale(nn.Module):
    """A parameter that is read by a method of its own, and by another module."""

    def __init__(self, shape):
        super().__init__()
        self.factor = nn.Parameter(torch.randn(shape))

    def get(self):
        return torch.sigmoid(self.factor)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(6), nn.Linear(6, 6)
        self.modulation = nn.Parameter(torch.randn(1, 2, 6))

    def forward(self, x):
        shift, scale = self.modulation.unbind(1)
        return x + self.layer(self.norm(x) * scale + shift)


class Mixed(nn.Module):
    """[n, 5] tokens → [n, 5, 6]: every kind of parameter there is, some of them tied or used in several places."""

    def __init__(self, use_checkpoint=False):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.embedding = nn.Embedding(9, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.blocks[1].norm.bias = self.blocks[0].norm.bias
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose1d(6, 6, 3, padding=1)
        self.scale = Scale(())
        self.head = nn.Linear(6, 6)
        self.head.bias = self.conv.bias
        self.position = nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.use_checkpoint else block(x)
        x = self.up(F.gelu(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x * self.scale.get() + self.scale.factor)


TOKENS = torch.arange(20).view(4, 5) % 9


def mixed(dtype=torch.float32, **options):
    """All parameters random, so that of each of them some elements are among the smallest."""
    torch.manual_seed(3)
    model = Mixed(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
        model.scale.factor.fill_(0.01)
    return model.to(dtype)


def loss_on(model):
    return model(TOKENS).float().square().mean()


@WAYS
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_gradients_of_every_kind_of_parameter_equal_dense_ones(copies, use_checkpoint):
    model, plain = mixed(use_checkpoint=use_checkpoint), mixed()
    store = attached(model, density=0.6, copy_weights=copies, preset=EVERYTHING)
    names = {segment.name for segment in store.support}
    assert names == {name for name, _ in plain.named_parameters()}
    for _ in range(2):  # gradients add up
        loss_on(model).backward()
        loss_on(plain).backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5
    assert all(parameter.grad is None for name, parameter in model.named_parameters())


@pytest.mark.bits
@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_output_is_the_same_bit_for_bit(copies, dtype):
    model, frozen = mixed(dtype), mixed(dtype).requires_grad_(False)
    attached(model, density=0.6, copy_weights=copies, preset=EVERYTHING)
    assert torch.equal(model(TOKENS), frozen(TOKENS))
    with torch.inference_mode():
        assert torch.equal(model(TOKENS), frozen(TOKENS))


@pytest.mark.bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_train_the_same_bits(dtype):
    in_place, copied = mixed(dtype), mixed(dtype)
    stores = [
        attached(model, density=0.6, copy_weights=copies, preset=EVERYTHING)
        for model, copies in ((in_place, False), (copied, True))
    ]
    before = every_bit(copied)
    for _ in range(3):
        outputs = []
        for model, store in zip((in_place, copied), stores):
            store.values.grad = None
            loss_on(model).backward()
            with torch.no_grad():
                store.values -= 0.05 * store.values.grad
            store.write()
            outputs.append(model(TOKENS))
        assert torch.equal(*outputs) and torch.equal(stores[0].values, stores[1].values)
    assert stores[0].values.detach().abs().max() > 0.01
    assert same_bits(every_bit(copied), before) and not same_bits(every_bit(in_place), before)


def test_training_by_the_optimizer_equals_dense_training_masked():
    model, base = mixed(), mixed()
    optimizer = SaRA(model, density=0.6, preset=EVERYTHING, optimizer=torch.optim.SGD, lr=0.2)
    plain = MaskedTraining(base, optimizer.store.support, torch.optim.SGD, lr=0.2)
    for _ in range(4):
        for network, inner in ((model, optimizer), (plain.model, plain)):
            network.zero_grad()
            loss_on(network).backward()
            inner.step()
    assert relative_error(optimizer.values.detach(), plain.delta.detach()) <= 1e-5
    assert optimizer.values.abs().max() > 0.01
    trained = model.state_dict()
    assert all(torch.allclose(trained[name], value, atol=1e-6) for name, value in plain.model.state_dict().items())


def test_a_bias_is_trained_where_its_weight_is_not_and_nothing_is_saved_for_it():
    model, plain = (nn.Sequential(nn.Linear(6, 7), nn.Conv1d(3, 5, 1)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    store = attached(model, density=0.5, include="*.bias")
    x = torch.randn(2, 3, 6)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        output = model(x)
    assert saved == []
    output.square().sum().backward()
    plain(x).square().sum().backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 4, 6), (2, 3, 4, 6)])
def test_the_bias_of_a_linear_for_inputs_of_any_shape(shape):
    model = nn.Linear(6, 6)
    plain = copy.deepcopy(model)
    store = attached(model, density=0.5, include="bias")
    x = torch.randn(shape)
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5


@pytest.mark.parametrize("layer, inputs, outputs", [
    (nn.Linear(1, 2), (5000, 1), (5000, 2)), (nn.Conv1d(1, 2, 1), (5, 1, 1000), (5, 2, 1000)),
])  # fmt: skip
def test_a_bias_in_half_precision_is_summed_up_in_fp32(layer, inputs, outputs):
    model = copy.deepcopy(layer).half()
    store = attached(model, density=0.5, include="bias")
    model(torch.zeros(inputs).half()).backward(torch.full(outputs, 100.0).half())
    assert store.values.grad.tolist() == [500_000.0]  # fp16 ends at 65504


def test_under_autocast_norms_train_too():
    model, plain = small_net(), small_net()
    store = attached(model, density=0.5, include="norm")
    batch, = small_batches(1)
    for network in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            output = network(batch[0])
        F.mse_loss(output.float(), batch[1]).backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 2**-6


def test_asking_for_another_gradient_does_not_add_to_the_vectors():
    model = mixed()
    store = attached(model, density=0.6, preset=EVERYTHING)
    x = torch.randn(2, 3, 6, requires_grad=True)
    torch.autograd.grad(model.blocks[0](x).sum(), x)
    assert store.values.grad is None


def test_reentrant_checkpointing_is_refused_by_name():
    model = Block()
    attached(model, density=0.6, include="norm, modulation")
    model.layer.forward = lambda x: x  # the layer refuses by itself
    x = torch.randn(2, 6, requires_grad=True)
    with pytest.raises(UnsupportedModelError, match="pass use_reentrant=False"):
        checkpoint(model, x, use_reentrant=True).sum().backward()


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("duplicate", [by_deepcopy, by_pickle])
def test_a_copy_of_a_model_in_training_is_whole_and_independent(duplicate):
    model = mixed()
    optimizer = SaRA(model, density=0.6, preset=EVERYTHING, lr=1e-2)
    loss_on(model).backward()
    optimizer.step()
    twin = duplicate(model)
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    assert same_bits(every_bit(twin), every_bit(model))
    before = every_bit(model)
    twin.zero_grad()
    loss_on(twin).backward()
    store = twin.head._sara.store
    with torch.no_grad():
        store.values -= twin.sara_values.grad
    store.write()
    assert same_bits(every_bit(model), before)
    trained = every_bit(twin)
    assert not any(torch.equal(trained[name], tensor) for name, tensor in before.items())


def everything(model):
    return {
        name: (type(module), sorted(vars(module)), {k: id(p) for k, p in module._parameters.items()})
        for name, module in model.named_modules()
    }


def test_detach_leaves_no_trace():
    model = mixed()
    seen, bits = everything(model), every_bit(model)
    optimizer = SaRA(model, density=0.6, preset=EVERYTHING, lr=1e-2)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["sara_values"]
    assert list(model.state_dict()) == list(bits)
    loss_on(model).backward()
    optimizer.step()
    assert not same_bits(every_bit(model), bits)
    optimizer.detach(restore=True)
    assert everything(model) == seen and same_bits(every_bit(model), bits)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.bits
def test_a_state_saved_in_training_goes_on_bit_for_bit():
    first, second = mixed(), mixed()
    optimizers = [SaRA(model, density=0.6, preset=EVERYTHING, lr=1e-2) for model in (first, second)]
    for _ in range(2):
        first.zero_grad()
        loss_on(first).backward()
        optimizers[0].step()
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert same_bits(every_bit(first), every_bit(second))
    for model, optimizer in zip((first, second), optimizers):
        model.zero_grad()
        loss_on(model).backward()
        optimizer.step()
    assert same_bits(every_bit(first), every_bit(second))


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = mixed()
    bits = every_bit(model)
    optimizer = SaRA(model, density=0.6, preset=EVERYTHING, lr=1e-2)
    loss_on(model).backward()
    optimizer.step()
    trained = model.state_dict()
    assert not any(torch.equal(trained[name], before) for name, before in bits.items())
    optimizer.detach(restore=True)
    assert same_bits(every_bit(model), bits)


def test_a_parameter_that_is_not_used_is_an_error_by_name():
    model = small_net()
    model.unused = nn.LayerNorm(3)
    optimizer = SaRA(model, density=0.5, include="norm, unused")
    loss_of(model, small_batches(1)[0]).backward()
    with pytest.raises(TrainingError, match="unused.bias"):
        optimizer.step()


def test_what_is_not_trained_is_counted():
    model = mixed()
    optimizer = SaRA(model, density=0.3)
    counted = {"biases": 6 + 6 + 6 + 6, "norms": 6 + 6 + 6, "embeddings": 54}
    counted["other parameters"] = 12 + 12 + 6 * 6 * 3 + 1 + 30
    assert optimizer.left_out == counted
    assert optimizer.selection.candidates == 36 + 36 + 108 + 36
    optimizer.detach()
    assert SaRA(model, density=0.3, preset=EVERYTHING).left_out == {}


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_is_trained_if_it_is_named():
    model, plain = (nn.Sequential(Doubling(6, 6), nn.Linear(6, 6)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    store = attached(model, density=0.5, include="0.weight, 1.weight")
    assert [segment.name for segment in store.support] == ["0.weight", "1.weight"]
    for network in (model, plain):
        network(torch.ones(2, 6)).square().sum().backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5


def test_no_copy_of_a_parameter_outlives_the_backward():
    model = nn.Sequential(*[nn.LayerNorm(1 << 14) for _ in range(4)])
    store = attached(model, density=0.01, preset=EVERYTHING)
    x = torch.randn(1, 1 << 14)
    model(x).sum().backward()
    store.values.grad = None
    with counted_memory() as memory:
        output = model(x)
        output.sum().backward()
        del output
    assert memory.left <= 4 * store.support.nnz + 64


@WAYS
def test_simulating_the_memory_leaves_no_gradient_and_changes_nothing(copies):
    model = mixed()
    store = attached(model, density=0.6, copy_weights=copies, preset=EVERYTHING)
    bits = every_bit(model)
    with simulated(model, store) as memory:
        loss_on(model).backward()
    assert memory.peak > 0
    assert store.values.grad is None and same_bits(every_bit(model), bits)
    loss_on(model).backward()
    assert store.values.grad.abs().sum() > 0
