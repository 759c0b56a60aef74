"""Layers whose instance computes by methods of its own, as hooks and wrappers leave them: exact, or refused."""

import copy
import functools
import types

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_submodules
from diffusers.hooks import HookRegistry, apply_group_offloading, apply_layerwise_casting
from diffusers.hooks import ModelHook as DiffusersHook
from torch import nn
from torch.utils.checkpoint import checkpoint

from sara_core import SaRA, TrainingError, UnsupportedModelError
from sara_core.backward.attach import detach_model, layers
from tests.support.small_models import (
    attached, every_bit, loss_of, masked_gradient, relative_error, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def group_offloading(model):
    apply_group_offloading(model, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def diffusers_hooks(model):
    for number, layer in enumerate(layers(model).values()):
        registry = HookRegistry.check_if_exists_or_initialize(layer)
        registry.register_hook(DiffusersHook(), "first")
        if number % 2:
            registry.register_hook(DiffusersHook(), "second")


def accelerate_hooks(model):
    for layer in layers(model).values():
        add_hook_to_module(layer, ModelHook())
        add_hook_to_module(layer, AlignDevicesHook(CPU, io_same_device=True), append=True)


def removed_hooks(model):
    accelerate_hooks(model)
    remove_hook_from_submodules(model)
    assert "forward" in model.conv.__dict__


def partials(model):
    for layer in layers(model).values():
        layer.forward = functools.partial(type(layer).forward, layer)


def circular_convolutions(model):
    """Makes pictures that can be tiled; two of torch's four sides are padded by hand."""

    def convolve(self, x, weight, bias):
        x = F.pad(x, (1, 1, 0, 0), mode="circular")
        return F.conv2d(x, weight, bias, self.stride, (1, 0), self.dilation, self.groups)

    for layer in (model.conv, model.grouped):
        layer._conv_forward = types.MethodType(convolve, layer)


def branches(model):
    """Something that is added to what the layer makes of a changed input, as adapters do."""
    for layer in (model.up, model.out):
        branch = torch.randn(layer.out_features, layer.in_features)
        layer.forward = functools.partial(_with_branch, layer.forward, branch)


def _with_branch(forward, branch, x):
    return forward(0.5 * x) + F.linear(x, branch)


def called_twice(model):
    model.down.forward = functools.partial(_twice, model.down.forward)


def _twice(forward, x):
    return forward(x) + forward(x.square())


WRAPPED = [
    group_offloading, diffusers_hooks, accelerate_hooks, removed_hooks, partials, circular_convolutions, branches,
    called_twice,
]  # fmt: skip


def wrapped(wrap):
    """A small net and its dense twin, both wrapped alike."""
    models = small_net(), small_net()
    for model in models:
        torch.manual_seed(3)
        wrap(model)
    return models


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_gradients_are_those_of_the_dense_model(wrap, copies):
    model, dense = wrapped(wrap)
    before, instances = every_bit(model), {name: set(vars(part)) for name, part in model.named_modules()}
    store = attached(model, copy_weights=copies)
    batch = small_batches(1)[0]
    loss, expected = loss_of(model, batch), loss_of(dense, batch)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert relative_error(store.values.grad, masked_gradient(dense, store.support)) < 1e-5
    detach_model(model)
    assert same_bits(every_bit(model), before)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == instances
    assert torch.equal(loss_of(model, batch), expected)


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_bias_is_trained_too_and_once(wrap):
    model, dense = wrapped(wrap)
    store = attached(model, include=["bias", "weight"])
    batch = small_batches(1)[0]
    loss_of(model, batch).backward()
    loss_of(dense, batch).backward()
    assert any(segment.name.endswith("bias") for segment in store.support)
    assert relative_error(store.values.grad, masked_gradient(dense, store.support)) < 1e-5


def test_weights_that_are_cast_for_each_use_train_as_those_of_the_cast_model():
    model, dense = small_net(dtype=torch.bfloat16), small_net(dtype=torch.bfloat16).float()
    model.norm.float()
    apply_layerwise_casting(model, torch.bfloat16, torch.float32, skip_modules_pattern=["norm"])
    store = attached(model)
    batch = small_batches(1)[0]
    loss_of(model, batch).backward()
    loss_of(dense, batch).backward()
    assert model.conv.weight.dtype == torch.bfloat16
    assert relative_error(store.values.grad, masked_gradient(dense, store.support)) < 1e-5


def test_a_run_under_hooks_makes_the_delta_of_a_plain_one():
    deltas = []
    for model in wrapped(accelerate_hooks)[0], small_net():
        optimizer = SaRA(model, density=0.3, lr=1e-2)
        for batch in small_batches(3):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        deltas.append(optimizer.delta().entries)
    for name, entry in deltas[0].items():
        assert torch.equal(entry.values, deltas[1][name].values), name


def test_a_copy_of_a_wrapped_model_in_training_is_independent():
    model, _ = wrapped(accelerate_hooks)
    store = attached(model)
    twin = copy.deepcopy(model)
    assert twin.conv.forward.module is twin.conv
    loss_of(twin, small_batches(1)[0]).backward()
    assert store.values.grad is None and twin.conv._sara.store.values.grad.abs().sum() > 0


def foreign_weight(layer):
    return functools.partial(F.linear, weight=layer.weight.detach().clone(), bias=layer.bias)


def another_product(layer):
    return lambda x: x @ layer.weight.t() + layer.bias


def without_bias(layer):
    return lambda x: F.linear(x, layer.weight)


def scaled_weight(layer):
    return lambda x: F.linear(x, layer.weight * 2, layer.bias)


def partly_elsewhere(layer):
    return lambda x: F.linear(x, layer.weight, layer.bias) + layer.weight.square().mean()


@pytest.mark.parametrize("number", [0, None])
@pytest.mark.parametrize("make", [foreign_weight, another_product, without_bias, scaled_weight, partly_elsewhere])
def test_what_cannot_be_followed_is_refused_by_name(make, number):
    model = small_net()
    model.out.forward = make(model.out)
    attached(model, exclude="" if number == 0 else "out")
    name = "'out.weight'" if number == 0 else "a frozen Linear layer"
    with pytest.raises(UnsupportedModelError, match=f"The forward of {name} was replaced by one that"):
        loss_of(model, small_batches(1)[0])


def test_a_forward_of_another_instance_is_refused():
    model = small_net()
    model.up.forward = small_net().up.forward
    attached(model)
    with pytest.raises(UnsupportedModelError, match="does not compute with the layer's own weight"):
        loss_of(model, small_batches(1)[0])


def test_reading_the_weight_without_a_gradient_is_no_computation():
    model = small_net()
    forward = model.out.forward

    def watched(x):
        model.norm_of_out = model.out.weight.detach().norm() + model.out.weight.data.norm()
        return forward(x)

    model.out.forward = watched
    store = attached(model)
    loss_of(model, small_batches(1)[0]).backward()
    assert store.values.grad.abs().sum() > 0 and model.norm_of_out > 0


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(2 * input, weight, bias)


def test_a_class_that_convolves_in_a_way_of_its_own_is_no_plain_layer():
    model = nn.Sequential(OwnConvolution(3, 4, 1), nn.Conv2d(4, 4, 1))
    optimizer = SaRA(model, density=0.5)
    assert [segment.name for segment in optimizer.store.support] == ["1.weight"]
    x = torch.randn(1, 3, 4, 4)
    trained = model(x)
    optimizer.detach()
    assert torch.equal(trained, model(x))


def test_a_hook_put_on_during_training_may_stay_after_it():
    model = small_net()
    optimizer = SaRA(model, density=0.3, lr=1e-2)
    accelerate_hooks(model)
    batch = small_batches(1)[0]
    loss_of(model, batch).backward()
    optimizer.step()
    trained = loss_of(model, batch)
    optimizer.detach()
    assert torch.equal(loss_of(model, batch), trained)
    remove_hook_from_submodules(model)
    assert torch.equal(loss_of(model, batch), trained)


def test_a_hook_taken_off_during_training_is_an_error_that_names_the_layer():
    model, _ = wrapped(accelerate_hooks)
    optimizer = SaRA(model, density=0.3, lr=1e-2)
    loss_of(model, small_batches(1)[0]).backward()
    remove_hook_from_submodules(model)
    with pytest.raises(TrainingError, match="The hook on 'conv' was taken off"):
        optimizer.step()


def test_weights_moved_by_hooks_to_another_device_are_refused_by_name():
    model = small_net()
    SaRA(model, density=0.3)
    model.conv.forward = functools.partial(_elsewhere, model.conv.forward)
    with pytest.raises(UnsupportedModelError, match="'conv.weight' was on cpu when .* computes on meta.*stream_to"):
        loss_of(model, small_batches(1)[0])


def _elsewhere(forward, x):
    return forward(x.to("meta"))


def test_weights_kept_elsewhere_are_refused_with_the_remedy():
    import accelerate

    model = small_net()
    accelerate.cpu_offload(model, CPU)
    with pytest.raises(UnsupportedModelError, match="'conv.weight' is not in memory yet.*without offloading"):
        SaRA(model, density=0.3)


OTHER_BIASES = {
    "shifted": lambda layer: layer.bias + 100,
    "scaled": lambda layer: layer.bias * 2,
    "none": lambda layer: None,
    "foreign": lambda layer: torch.ones(layer.out_features),
}


@pytest.mark.parametrize("include", [(), ("*weight", "*bias")], ids=["weights", "biases too"])
@pytest.mark.parametrize("other", OTHER_BIASES)
def test_an_own_forward_that_adds_another_bias_is_refused_by_name(other, include):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    layer, bias_of = model[0], OTHER_BIASES[other]
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight, bias_of(layer))
    SaRA(model, density=0.3, include=include)
    with pytest.raises(UnsupportedModelError, match="'0.weight' .*another bias than its own"):
        model(torch.randn(2, 4))


@pytest.mark.parametrize("call", [
    lambda layer, x: torch.nn.functional.linear(input=x, weight=layer.weight, bias=layer.bias),
    lambda layer, x: torch.nn.functional.linear(x, weight=layer.weight, bias=layer.bias),
], ids=["all by name", "the weight by name"])  # fmt: skip
def test_an_own_forward_may_name_what_it_gives_to_torch(call):
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model, x = copy.deepcopy(plain), torch.randn(2, 4)
    model[0].forward = functools.partial(call, model[0])
    optimizer = SaRA(model, density=0.3)
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert relative_error(optimizer.values.grad, masked_gradient(plain, optimizer.store.support)) <= 1e-5


def recomputed(reentrant):
    def wrap(layer):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=reentrant)

    return wrap


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_checkpoints_itself_is_refused_by_name(reentrant):
    """Its forward runs again in the backward, where it is torch's own: with other saved tensors, or no gradient."""
    model = small_net()
    recomputed(reentrant)(model.up)
    attached(model)
    with pytest.raises(UnsupportedModelError, match="The forward of 'up.weight' .* checkpoints its own activations"):
        model(small_batches(1)[0][0])


def test_a_frozen_layer_that_checkpoints_itself_is_refused_where_its_gradient_would_fail():
    for reentrant in (False, True):
        model = small_net()
        recomputed(reentrant)(model.up)
        attached(model, exclude="up")
        batch = small_batches(1)[0]
        if reentrant:
            loss_of(model, batch).backward()
        else:
            with pytest.raises(UnsupportedModelError, match="The forward of a frozen Linear layer .* its own activat"):
                loss_of(model, batch)


@pytest.mark.parametrize("around", [
    lambda layer, x: checkpoint(layer, x, use_reentrant=False), lambda layer, x: layer(x),
])  # fmt: skip
def test_checkpointing_around_a_layer_with_hooks_and_saving_elsewhere_inside_it_stay_exact(around):
    """Around it the whole layer runs again, answered as before; tensors that are saved elsewhere come back as they
    were."""
    gradients = []
    for is_wrapped in (False, True):
        model = small_net()
        if is_wrapped:
            inner = model.up.forward

            def forward(x, inner=inner):
                with torch.autograd.graph.save_on_cpu():
                    return inner(x)

            model.up.forward = forward
        store = attached(model)
        x = torch.randn(3, model.up.in_features, generator=torch.Generator().manual_seed(5), requires_grad=True)
        around(model.up, x).square().sum().backward()
        gradients.append((store.values.grad.clone(), x.grad))
    assert gradients[0][0].any() and all(map(torch.equal, *gradients))


def test_a_forward_that_was_exchanged_for_all_layers_of_torch_is_refused_and_not_left_out_silently(monkeypatch):
    original = torch.nn.Linear.forward
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Conv2d(4, 4, 1))
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: original(self, x))
    with pytest.raises(UnsupportedModelError, match="exchanged the forward of all Linear layers"):
        SaRA(model, count=4)
