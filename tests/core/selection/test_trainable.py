"""Which parameters of a model are trained where something else is beside them: adapters, and copies of weights."""

import peft
import pytest
import torch

from sara_core import SaRA, SelectionError, TrainingError, UnsupportedModelError
from sara_core.delta.own_weights import OwnWeights
from sara_core.selection.trainable import left_out, trainable_weights
from tests.support import tiny_diffusers

TARGETS = ["to_q", "to_v", "conv1"]


def with_lora(name="default", model=None, **options):
    torch.manual_seed(4)
    model = model or tiny_diffusers.unet()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **options), name)
    return model


def with_peft(config, **options):
    torch.manual_seed(4)
    return peft.get_peft_model(tiny_diffusers.unet(), config(target_modules=["to_q", "to_v"], **options))


ADAPTED = {
    "LoRA": with_lora,
    "LoRA with dropout": lambda: with_lora(lora_dropout=0.3).train(),
    "two LoRAs": lambda: with_lora("second", with_lora()),
    "DoRA": lambda: with_lora(use_dora=True),
    "LoHa": lambda: with_peft(peft.LoHaConfig, r=2, init_weights=False),
    "OFT": lambda: with_peft(peft.OFTConfig, oft_block_size=4, init_weights=False),
    "IA3": lambda: with_peft(peft.IA3Config, feedforward_modules=[], init_ia3_weights=False),
}


def loss_of(model):
    torch.manual_seed(5)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner(**tiny_diffusers.inputs(inner)).sample.square().mean()


@pytest.mark.parametrize("name", ADAPTED)
def test_beside_adapters_the_model_s_own_weights_are_trained_with_their_dense_gradients(name):
    model, dense = ADAPTED[name](), ADAPTED[name]()
    weights = trainable_weights(model)
    plain = tiny_diffusers.unet()
    assert weights.keys() == trainable_weights(plain).keys()
    assert left_out(model, weights) == left_out(plain, trainable_weights(plain))
    optimizer = SaRA(model, density=0.5)
    own = OwnWeights(dense).tensors
    dense.requires_grad_(False)
    for segment in optimizer.store.support:
        own[segment.name].requires_grad_()
    loss, expected = loss_of(model), loss_of(dense)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for segment in optimizer.store.support:
        gradient = own[segment.name].grad.reshape(-1)[segment.flat()]
        torch.testing.assert_close(optimizer.values.grad[segment.span], gradient)
    optimizer.step()


def test_an_adapter_that_computes_with_copies_of_the_weights_is_refused_by_their_names():
    model = with_peft(peft.ShiraConfig, r=2, init_weights=False)
    optimizer = SaRA(model, density=0.5)
    loss_of(model).backward()
    with pytest.raises(TrainingError, match="got no gradient: .*attn1.to_q.weight.*leave them out"):
        optimizer.step()


def test_factors_of_an_adapter_are_nothing_to_choose():
    with pytest.raises(SelectionError, match="matches no weight"):
        trainable_weights(with_lora(), include="lora_A")
    assert [*trainable_weights(with_lora(), include="attn1.to_q.weight")][0].endswith("attn1.to_q.weight")
    everything = trainable_weights(with_lora(), preset="all layers, biases and norms")
    assert everything and not any("lora" in name for name in everything)


def test_a_layer_that_an_adapter_has_replaced_is_refused_by_name_or_left_out():
    model = with_lora(modules_to_save=["conv_in"])
    with pytest.raises(UnsupportedModelError, match="'default' has put .* of 'conv_in.weight'"):
        SaRA(model, density=0.5)
    weights = trainable_weights(model, exclude="conv_in")
    assert weights.keys() == trainable_weights(tiny_diffusers.unet(), exclude="conv_in").keys()
    model.conv_in.enable_adapters(False)
    optimizer = SaRA(model, density=0.5)
    loss_of(model).backward()
    optimizer.step()


@pytest.mark.parametrize("make", [tiny_diffusers.unet, tiny_diffusers.flux])
def test_a_fused_model_is_refused_until_it_is_unfused(make):
    model, plain = make(), make()
    model.fuse_qkv_projections()
    with pytest.raises(UnsupportedModelError, match="call unfuse_qkv_projections.. before training"):
        SaRA(model, density=0.5)
    model.unfuse_qkv_projections()
    assert trainable_weights(model).keys() == trainable_weights(plain).keys()
    optimizer = SaRA(model, density=0.5)
    loss_of(model).backward()
    optimizer.step()


def test_layers_that_are_fused_from_the_beginning_are_trained():
    """What only looks like a copy: there is nothing that it is a copy of."""
    model = torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({"to_qkv": torch.nn.Linear(4, 12)})})
    model["attn"].fused_projections = True
    assert [*trainable_weights(model)] == ["attn.to_qkv.weight"]


class Packed(torch.nn.Linear):
    """As quantised layers are: bytes, and a forward that makes a weight of them."""

    def __init__(self):
        super().__init__(4, 4)
        self.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x


def test_a_quantised_layer_beside_plain_ones_is_refused_by_name_or_left_out():
    model = torch.nn.ModuleDict({"packed": Packed(), "plain": torch.nn.Linear(4, 4)})
    with pytest.raises(UnsupportedModelError, match="'packed.weight' is stored as uint8"):
        trainable_weights(model)
    assert [*trainable_weights(model, exclude="packed")] == ["plain.weight"]


@pytest.mark.parametrize("layer", [torch.nn.LazyLinear(4), torch.nn.Linear(4, 4, device="meta")], ids=["lazy", "meta"])
def test_a_weight_that_is_not_in_memory_is_refused_by_name(layer):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), layer)
    with pytest.raises(UnsupportedModelError, match="'1.weight' is not in memory yet: load the model's weights first"):
        SaRA(model, density=0.3)


class Shared(torch.nn.Module):
    """One layer under two names, and one weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.out = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.again = self.first
        self.tied = torch.nn.Linear(4, 4)
        self.tied.weight = self.out.weight


@pytest.mark.parametrize("patterns, names", [
    ({}, ["first.weight", "out.weight"]),
    ({"include": "again"}, ["first.weight"]),
    ({"include": "tied"}, ["out.weight"]),
    ({"exclude": "again"}, ["out.weight"]),
    ({"exclude": "tied"}, ["first.weight"]),
    ({"include": "first, again, bias", "exclude": "tied.bias"}, ["first.weight", "first.bias", "out.bias"]),
], ids=str)  # fmt: skip
def test_a_parameter_goes_by_each_of_its_names_and_is_trained_under_the_first(patterns, names):
    model = Shared()
    weights = trainable_weights(model, **patterns)
    assert list(weights) == names
    assert all(weights[name].weight is model.get_parameter(name) for name in names)


def test_what_is_not_trained_is_counted_once_by_its_kind():
    model = torch.nn.ModuleDict({
        "shared": Shared(), "norm": torch.nn.LayerNorm(4), "words": torch.nn.Embedding(3, 4), "scale": torch.nn.PReLU(),
    })  # fmt: skip
    weights = trainable_weights(model)
    assert left_out(model, weights) == {"biases": 12, "norms": 8, "embeddings": 12, "other parameters": 1}
    everything = trainable_weights(model, preset="all layers, biases and norms")
    assert left_out(model, everything) == {}


def test_overlapping_weights_are_refused_wherever_they_lie():
    memory = torch.zeros(40)

    def layer(begin):
        made = torch.nn.Linear(4, 2, bias=False)
        made.weight = torch.nn.Parameter(memory[begin:begin + 8].view(2, 4))
        return made

    apart = torch.nn.ModuleList([layer(16), layer(0), layer(8)])  # one ends where the next begins
    assert len(trainable_weights(apart)) == 3
    for begin in (1, 7, 12):
        model = torch.nn.ModuleList([layer(16), layer(0), layer(begin)])
        with pytest.raises(UnsupportedModelError, match="overlap in memory without being the same"):
            trainable_weights(model)
    untrained = torch.nn.ModuleList([layer(0), layer(20), layer(4)])
    assert list(trainable_weights(untrained, include="1.weight")) == ["1.weight"]


class Scaled(torch.nn.Module):
    """A block of layers, with a parameter of its own beside them."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = torch.nn.Linear(4, 4), torch.nn.Parameter(torch.ones(4))


@pytest.mark.parametrize("include, trained", [
    ("block", ["block.inner.weight"]), ("scale", ["block.scale"]), ("block.scale", ["block.scale"]),
    ("inner,parameter", ["block.inner.weight", "block.scale"]),
])  # fmt: skip
def test_a_blocks_own_parameter_is_trained_where_it_is_named_and_not_with_its_layers(include, trained):
    assert sorted(trainable_weights(torch.nn.ModuleDict({"block": Scaled()}), include)) == trained


def test_a_weight_that_every_forward_computes_anew_is_refused_or_left_out():
    layers = [torch.nn.Linear(4, 4), torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))]
    model = torch.nn.Sequential(*layers)
    with pytest.raises(UnsupportedModelError, match=r"'1\.weight' is computed anew in each forward"):
        trainable_weights(model)
    assert list(trainable_weights(model, exclude="1.")) == ["0.weight"]
