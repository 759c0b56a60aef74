"""Attached layers inside whole models: the same outputs and gradients, and nothing kept that need not be."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sara_core import SaRA, UnsupportedModelError
from sara_core.backward import ops as layers, weight_gradient
from sara_core.backward.access import AddedCopy
from tests.support.small_models import (
    at_support, attached, counted_memory, every_bit, loss_of, masked_gradient, relative_error, repeatable, same_bits,
    small_batches, small_net,
)  # fmt: skip

WAYS = pytest.mark.parametrize("copies", [False, True], ids=["in place", "after a copy"])
ROUTES = pytest.mark.parametrize("route", ["dense", "csr"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def of_dtype(batch, dtype):
    return tuple(tensor.to(dtype) for tensor in batch)


@ROUTES
@WAYS
def test_gradients_of_a_whole_model(route, copies):
    model, plain = small_net(), small_net()
    store = attached(model, route=route, copy_weights=copies)
    batch, = small_batches(1)
    loss_of(model, batch).backward()
    loss_of(plain, batch).backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5


@pytest.mark.bits
@WAYS
@DTYPES
def test_the_first_output_is_the_same_bit_for_bit(copies, dtype):
    model, frozen = small_net(dtype=dtype), small_net(dtype=dtype).requires_grad_(False)
    attached(model, copy_weights=copies)
    for batch in small_batches(3):
        x = batch[0].to(dtype)
        assert torch.equal(model(x), frozen(x))
        with torch.inference_mode():
            assert torch.equal(model(x), frozen(x))


@pytest.mark.bits
@ROUTES
@DTYPES
def test_both_ways_of_reaching_weights_train_the_same_bits(route, dtype):
    in_place, copied = small_net(dtype=dtype), small_net(dtype=dtype)
    stores = attached(in_place, route=route), attached(copied, route=route, copy_weights=True)
    before = every_bit(copied)
    for batch in small_batches(4):
        batch = of_dtype(batch, dtype)
        outputs = []
        for model, store in zip((in_place, copied), stores):
            store.values.grad = None
            loss_of(model, batch).backward()
            with torch.no_grad():
                store.values -= 0.1 * store.values.grad
            store.write()
            outputs.append(model(batch[0]))
        assert torch.equal(*outputs)
        assert torch.equal(stores[0].values, stores[1].values)
    assert stores[0].values.detach().abs().max() > 0.01
    assert same_bits(every_bit(copied), before)


@pytest.mark.bits
def test_live_weights_are_base_plus_delta_rounded_once():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model, base = small_net(dtype=dtype), small_net(dtype=dtype)
        store = attached(model)
        with torch.no_grad():
            store.values.normal_(std=0.03)
        store.write()
        assert {values.dtype for values in store.base} == {dtype}
        wide = torch.promote_types(dtype, torch.float32)
        expected = at_support(dict(base.named_parameters()), store.support).to(wide) + store.values.to(wide)
        assert torch.equal(at_support(dict(model.named_parameters()), store.support), expected.to(dtype))
        store.restore()
        assert same_bits(every_bit(model), every_bit(base))


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.other = nn.Linear(6, 6)
        self.other.weight = self.layer.weight

    def forward(self, x):
        return self.other(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


@ROUTES
@WAYS
def test_a_module_used_twice_and_a_tied_weight_are_one_segment_with_the_sum_of_gradients(route, copies):
    model = UsedTwice()
    plain = copy.deepcopy(model)
    store = attached(model, route=route, copy_weights=copies)
    assert [segment.name for segment in store.support] == ["layer.weight"]
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5


@pytest.mark.bits
def test_two_backwards_add_up():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(4, 6)
    store = attached(model)
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    once = store.values.grad.clone()
    loss.backward()
    assert torch.equal(store.values.grad, 2 * once)


@WAYS
@pytest.mark.parametrize("layer, shape", [
    (nn.Linear(6, 6), (4, 6)), (nn.Linear(6, 6), (2, 4, 6)), (nn.Linear(6, 6, bias=False), (2, 4, 6)),
    (nn.Linear(6, 6), (6,)), (nn.Conv1d(6, 6, 3, padding=1), (2, 6, 5)), (nn.Conv1d(6, 6, 3, padding=1), (6, 5)),
    (nn.Conv2d(6, 6, 1), (2, 6, 4, 4)), (nn.Conv2d(6, 6, 3, padding="same"), (6, 4, 4)),
])  # fmt: skip
def test_a_model_may_change_a_layers_output_in_place(layer, shape, copies):
    model = copy.deepcopy(layer)
    plain = copy.deepcopy(model)
    store = attached(model, copy_weights=copies)
    x = torch.randn(shape)
    for network in (model, plain):
        output = network(x)
        output += x
        output.mul_(2)
        output.square().sum().backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5


def saved_by(run):
    """Every tensor that the graph of a forward keeps."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        run()
    return saved


@WAYS
def test_no_weight_is_saved_for_backward(copies):
    model = small_net()
    attached(model, copy_weights=copies)
    weights = [module.weight for module in model.modules() if hasattr(module, "_sara")]
    batch, = small_batches(1, size=5)
    saved = saved_by(lambda: loss_of(model, batch))
    assert len(saved) >= len(weights)
    memory = {weight.untyped_storage().data_ptr() for weight in weights}
    shapes = {tuple(shape) for weight in weights for shape in (weight.shape, reversed(weight.shape))}
    assert not [tensor for tensor in saved if tensor.untyped_storage().data_ptr() in memory]
    assert not [tensor for tensor in saved if tuple(tensor.shape) in shapes]


def test_a_frozen_layer_saves_nothing_and_a_trained_one_its_input_only():
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 8), nn.Conv1d(3, 5, 1), nn.Linear(8, 9))
    attached(model, include=["1.weight"])
    inputs = []
    model[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    saved = saved_by(lambda: model(torch.randn(2, 3, 6, requires_grad=True)))
    assert [tensor.data_ptr() for tensor in saved] == [inputs[0].data_ptr()]


def test_what_several_layers_take_as_their_input_is_saved_once():
    model = nn.ModuleList(nn.Linear(6, 7) for _ in range(3))
    attached(model)
    x = torch.randn(2, 5, 6)
    saved = saved_by(lambda: [layer(x) for layer in model])
    assert [tensor.untyped_storage().data_ptr() for tensor in saved] == [x.untyped_storage().data_ptr()] * 3


@WAYS
@pytest.mark.parametrize("batch, bias", [(1, True), (3, False)])
def test_a_convolution_never_uses_more_of_its_weight_at_a_time_than_allowed(monkeypatch, batch, bias, copies):
    module, plain = nn.Conv2d(6, 10, 3, padding=1, bias=bias), nn.Conv2d(6, 10, 3, padding=1, bias=bias)
    plain.load_state_dict(module.state_dict())
    attached(module, density=0.3, copy_weights=copies)
    used = []

    def watched(function):
        return lambda x, weight, *others: used.append(weight.numel()) or function(x, weight, *others)

    monkeypatch.setattr(layers, "WEIGHT_COPY_BYTES", 4 * 6 * 9 * 4)
    monkeypatch.setattr(layers.F, "conv2d", watched(F.conv2d))
    x, y = (torch.randn(batch, 6, 5, 5).requires_grad_(True) for _ in range(2))
    y.data = x.data
    output, expected = module(x), plain(y)
    output.square().sum().backward()
    expected.square().sum().backward()
    assert used[:3] == [4 * 6 * 9, 4 * 6 * 9, 2 * 6 * 9]
    assert relative_error(output.detach(), expected.detach()) <= 1e-6
    assert relative_error(x.grad, y.grad) <= 1e-6


@pytest.mark.parametrize("channels, allowed, parts", [
    (200, 150, [128, 72]), (200, 64, [64, 64, 64, 8]), (200, 63, [63, 63, 63, 11]), (200, 200, [200]), (2, 0.5, [1, 1]),
])  # fmt: skip
def test_a_convolution_is_computed_in_parts_of_whole_blocks(monkeypatch, channels, allowed, parts):
    """Of 64 channels, where that many are allowed at a time."""
    monkeypatch.setattr(layers, "WEIGHT_COPY_BYTES", int(allowed * 4))
    op, weight = layers.ConvOp.of(nn.Conv1d(1, channels, 1)), torch.zeros(channels, 1, 1)
    assert [len(weight[rows]) for rows in op._output_channels(weight)] == parts


def test_layers_before_the_first_trained_one_build_no_graph():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    attached(model, include=["2.weight"])
    assert not model[1](model[0](torch.randn(2, 6))).requires_grad
    assert model(torch.randn(2, 6)).requires_grad


def test_asking_for_another_gradient_does_not_add_to_the_vectors():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(2, 6, requires_grad=True)
    store = attached(model)
    torch.autograd.grad(model(x).sum(), x)
    assert store.values.grad is None


LAYERS, WIDTH, TOKENS = 6, 256, 8


def deep_model():
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])


@ROUTES
@WAYS
def test_no_copy_of_a_weight_and_no_dense_gradient_outlives_a_layers_backward(monkeypatch, route, copies):
    monkeypatch.setattr(weight_gradient, "DENSE_BYTES", 16 << 10)
    model, x = deep_model(), torch.randn(TOKENS, WIDTH)
    store = attached(model, density=0.01, route=route, copy_weights=copies)
    model(x).sum().backward()
    store.values.grad = None
    weight, activation, vector = 4 * WIDTH * WIDTH, 4 * TOKENS * WIDTH, 4 * store.support.nnz
    alive_at_most = (2 * LAYERS + 6) * activation + vector
    with counted_memory() as memory:
        output = model(x)
    assert memory.left <= (LAYERS + 1) * activation
    assert memory.peak <= alive_at_most + copies * weight
    with counted_memory() as memory:
        output.sum().backward()
    one_layer_of_the_vector = 8 * vector // LAYERS  # positions and temporaries, 64 bits
    assert memory.peak <= alive_at_most + one_layer_of_the_vector + (16 << 10) + copies * weight
    assert memory.largest <= (weight if copies else weight // 4)
    assert memory.left <= vector + 64


@ROUTES
def test_the_dense_gradient_of_a_convolution_exists_a_chunk_at_a_time(monkeypatch, route):
    monkeypatch.setattr(weight_gradient, "DENSE_BYTES", 16 << 10)
    monkeypatch.setattr(layers, "UNFOLD_BYTES", 16 << 10)
    model, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(2, 128, 4, 4)
    store = attached(model, density=0.01, route=route)
    output = model(x)
    with counted_memory() as memory:
        output.sum().backward()
    weight = 4 * model.weight.numel()
    unfolded = 4 * 9 * x[0].numel()  # what torch's own kernel takes on processors without AVX2
    assert memory.peak <= weight // 4 + unfolded < weight // 2
    assert memory.left <= 4 * store.support.nnz


def test_copies_are_gone_before_the_next_layer_runs(monkeypatch):
    made, alive = [], []
    add = AddedCopy.add

    def watched(self, *args):
        alive.append(sum(reference() is not None for reference in made))
        result = add(self, *args)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(AddedCopy, "add", watched)
    model = deep_model()
    attached(model, copy_weights=True)
    model(torch.randn(TOKENS, WIDTH)).sum().backward()
    assert alive == [0] * (2 * LAYERS - 1)  # the first layer's input needs no gradient


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant=None):
        super().__init__()
        self.first, self.block = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.last, self.use_reentrant = nn.Linear(6, 2), use_reentrant

    def forward(self, x):
        h = self.first(x)
        h = self.block(h) if self.use_reentrant is None else checkpoint(self.block, h, use_reentrant=self.use_reentrant)
        return self.last(h)


@pytest.mark.bits
@ROUTES
@WAYS
def test_checkpointing_gives_the_same_gradients(route, copies):
    x, gradients = torch.randn(4, 6), []
    for use_reentrant in (None, False):
        torch.manual_seed(3)
        model = Checkpointed(use_reentrant)
        store = attached(model, route=route, copy_weights=copies)
        model(x).square().sum().backward()
        gradients.append(store.values.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_reentrant_checkpointing_is_refused_by_name():
    model = Checkpointed(use_reentrant=True)
    attached(model)
    with pytest.raises(UnsupportedModelError, match="pass use_reentrant=False"):
        model(torch.randn(4, 6)).sum().backward()


@pytest.mark.bits
@ROUTES
@WAYS
def test_autocast(route, copies):
    model, frozen, plain = small_net(), small_net().requires_grad_(False), small_net()
    store = attached(model, route=route, copy_weights=copies)
    batch, = small_batches(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch[0])
        assert torch.equal(output, frozen(batch[0]))
        loss, expected = F.mse_loss(output.float(), batch[1]), F.mse_loss(plain(batch[0]).float(), batch[1])
    loss.backward()
    expected.backward()
    assert store.values.grad.dtype == torch.float32
    # Both round every layer's output and gradient to bf16 (2^-8 relative), in another order where torch folds batches.
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 2**-6


def test_under_autocast_a_layer_saves_its_input_in_the_lower_precision():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    attached(model)
    with torch.autocast("cpu", torch.bfloat16):
        saved = saved_by(lambda: model(torch.randn(2, 6)))
    assert [tensor.dtype for tensor in saved] == [torch.bfloat16, torch.bfloat16]


def compiled_by_function():
    return torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), backend="eager")


def compiled_by_method():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model.compile(backend="eager")
    return model


def compiled_in_part():
    return nn.Sequential(compiled_by_function(), nn.Linear(6, 6))


@pytest.mark.parametrize("make", [
    compiled_by_function,
    compiled_by_method,
    compiled_in_part,
])  # fmt: skip
def test_a_compiled_model_is_refused_by_name(make):
    with pytest.raises(UnsupportedModelError, match="torch.compile"):
        SaRA(make(), density=0.3)


def test_compiling_a_model_in_training_is_refused_by_name():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    attached(model)
    with pytest.raises(Exception, match="torch.compile does not go with sparse training"):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(2, 6))


def test_compiling_a_model_in_training_with_breaks_in_the_graph_changes_nothing():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(2, 6)
    plain = copy.deepcopy(model)
    store = attached(model)
    torch.compile(model, backend="eager")(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= 1e-5
