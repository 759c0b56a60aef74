"""A model in training stays an ordinary model: it is copied, pickled, saved and loaded, and given back as it was."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sara_core import SaRA, SelectionError, TrainingError, UnsupportedModelError
from tests.support.small_models import every_bit, loss_of, repeatable, same_bits, small_batches, small_net


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def one_step(model, optimizer, batch):
    model.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()


def in_training(steps=2):
    """A model in the middle of training, with its optimizer."""
    model = small_net()
    optimizer = SaRA(model, density=0.3, lr=1e-2, weight_gradient="dense")
    for batch in small_batches(steps):
        one_step(model, optimizer, batch)
    return model, optimizer


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.bits
@pytest.mark.parametrize("duplicate", [by_deepcopy, by_pickle, by_file])
def test_a_copy_of_a_model_in_training_is_whole_and_independent(duplicate):
    model, optimizer = in_training()
    twin = duplicate(model)
    assert same_bits(every_bit(twin), every_bit(model))
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    store = twin.conv._sara.store
    assert store.values is twin.sara_values and store.values is not optimizer.values
    assert torch.equal(store.values, optimizer.values)
    layers = [module for module in twin.modules() if hasattr(module, "_sara")]
    assert all(layer._sara.store is store for layer in layers)
    assert twin.tied.weight is twin.up.weight

    before, batch = every_bit(model), small_batches(1)[0]
    values = optimizer.values.detach().clone()
    inner = torch.optim.SGD([twin.sara_values], lr=0.1)
    twin.zero_grad()
    loss_of(twin, batch).backward()
    inner.step()
    store.write()
    assert not same_bits(every_bit(twin), before)
    assert same_bits(every_bit(model), before) and torch.equal(optimizer.values, values)

    after = every_bit(twin)
    one_step(model, optimizer, batch)
    assert not same_bits(every_bit(model), before)
    assert same_bits(every_bit(twin), after)


@pytest.mark.bits
def test_the_state_dict_of_a_model_in_training_is_an_ordinary_one():
    model, _ = in_training()
    plain, parent = small_net(), nn.ModuleDict({"unet": model})
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [f"unet.{key}" for key in plain.state_dict()] == list(parent.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)
    plain.requires_grad_(False)
    x = small_batches(1)[0][0]
    assert torch.equal(plain(x), model(x))
    for target, state in [(model, plain.state_dict()), (parent, nn.ModuleDict({"unet": plain}).state_dict())]:
        result = target.load_state_dict(state, strict=True)
        assert not result.missing_keys and not result.unexpected_keys


def test_a_state_dict_that_lacks_something_else_is_still_refused():
    model, _ = in_training()
    state = small_net().state_dict()
    del state["conv.weight"]
    with pytest.raises(RuntimeError, match="conv.weight"):
        model.load_state_dict(state, strict=True)


def everything(model):
    """What can be seen of every module: class, attributes, parameters with their flags, and hooks."""
    hooks = ("_state_dict_hooks", "_load_state_dict_post_hooks", "_state_dict_pre_hooks", "_forward_pre_hooks",
             "_forward_hooks", "_backward_hooks", "_load_state_dict_pre_hooks")  # fmt: skip
    return {
        name: (
            type(module),
            sorted(vars(module)),
            {key: (id(p), p.data_ptr(), p.requires_grad) for key, p in module._parameters.items() if p is not None},
            {hook: len(getattr(module, hook)) for hook in hooks},
            module.forward.__func__,
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_detach_with_restore_leaves_no_trace(dtype):
    model = small_net(dtype=dtype)
    model.conv.bias.requires_grad_(False)
    seen, bits = everything(model), every_bit(model)
    optimizer = SaRA(model, density=0.3, lr=1e-2)
    for x, y in small_batches(3):
        one_step(model, optimizer, (x.to(dtype), y.to(dtype)))
    assert everything(model) != seen and not same_bits(model.state_dict(), bits)
    optimizer.detach(restore=True)
    assert everything(model) == seen
    assert same_bits(every_bit(model), bits)


def test_detach_keeps_what_was_trained_and_the_model_can_be_trained_again():
    model, optimizer = in_training()
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = everything(small_net())
    optimizer.detach()
    assert same_bits(every_bit(model), trained)
    assert [module[:2] for module in everything(model).values()] == [module[:2] for module in seen.values()]
    again = SaRA(model, density=0.1, lr=1e-2)
    one_step(model, again, small_batches(1)[0])
    again.detach(restore=True)
    assert same_bits(every_bit(model), trained)


def test_only_the_vector_can_be_trained_while_attached():
    model, optimizer = in_training()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["sara_values"]
    assert list(optimizer.param_groups[0]["params"]) == [optimizer.values] and len(optimizer.param_groups) == 1


def test_a_single_layer_is_a_model_too():
    layer = nn.Linear(6, 6)
    bits = every_bit(layer)
    optimizer = SaRA(layer, density=0.3, lr=1e-2)
    layer(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    assert list(optimizer.delta().entries) == ["weight"]
    optimizer.detach(restore=True)
    assert same_bits(every_bit(layer), bits)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1)], ids=["linear", "convolution"])
def test_a_layer_takes_its_input_by_name_as_torchs_do(layer):
    """diffusers calls those of AnimateDiff's motion modules so."""
    x = torch.randn(2, 4, 4, 4)
    expected = layer(x)
    SaRA(layer, density=0.3)
    assert torch.equal(layer(input=x), expected)
    with pytest.raises(UnsupportedModelError, match="is called with scale"):
        layer(input=x, scale=1.0)


def test_a_tied_weight_is_chosen_once_and_counted_once():
    model = small_net()
    optimizer = SaRA(model, density=0.3)
    names = [segment.name for segment in optimizer.store.support]
    assert names == ["conv.weight", "grouped.weight", "sequence.weight", "up.weight", "down.weight", "out.weight"]
    layers = [model.conv, model.grouped, model.sequence, model.up, model.down, model.out]
    assert optimizer.selection.candidates == sum(layer.weight.numel() for layer in layers)


def test_patterns_limit_what_is_trained():
    chosen = {s.name for s in SaRA(small_net(), density=0.3, include=["conv", "up.*"]).store.support}
    assert chosen == {"conv.weight", "up.weight"}
    with pytest.raises(SelectionError, match="patterns leave no Linear or Conv layer"):
        SaRA(small_net(), density=0.3, exclude=["weight"])


class Scaled(torch.Tensor):
    """A stand-in for the tensor classes of quantisation libraries."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return torch.Tensor._make_wrapper_subclass(cls, args[0].shape)
        raise NotImplementedError(function)


@pytest.mark.parametrize("weight, kind", [
    (torch.zeros(6, 6, dtype=torch.int8), "int8"),
    (torch.zeros(6, 6).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    (torch.Tensor._make_wrapper_subclass(Scaled, (6, 6)), "Scaled"),
], ids=["int8", "float8", "own class"])  # fmt: skip
def test_weights_that_cannot_be_trained_are_refused_by_name_and_the_model_is_left_alone(weight, kind):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = nn.Parameter(weight, requires_grad=False)
    seen = everything(model[0])
    with pytest.raises(UnsupportedModelError, match=f"1.weight.*{kind}.*fp16, bf16 or fp32"):
        SaRA(model, density=0.3)
    assert everything(model[0]) == seen
    SaRA(model, density=0.3, exclude=["1.weight"])


def test_a_second_optimizer_is_refused_until_the_first_is_detached():
    model, optimizer = in_training()
    with pytest.raises(UnsupportedModelError, match=r"already being trained.*detach\(\)"):
        SaRA(model, density=0.3)
    optimizer.detach()
    SaRA(model, density=0.3)


@pytest.mark.parametrize("options", [{"no_such_option": 1}, {"lr": -1.0}])
def test_options_that_the_optimizer_refuses_leave_the_model_alone(options):
    model = small_net()
    seen, bits = everything(model), every_bit(model)
    with pytest.raises((TypeError, TrainingError)):
        SaRA(model, density=0.3, **options)
    assert everything(model) == seen and same_bits(every_bit(model), bits)


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_with_a_forward_of_its_own_computes_what_it_did_or_is_refused():
    model, x = nn.Sequential(Doubling(6, 6), nn.Linear(6, 6)).requires_grad_(False), torch.randn(2, 6)
    expected = model(x)
    try:
        SaRA(model, density=0.3)
    except UnsupportedModelError:
        pass
    assert torch.equal(model(x), expected)


class TiedHead(nn.Module):
    """The input embedding and the output layer share one weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_a_weight_tied_to_an_embedding_gets_the_whole_gradient_or_is_refused():
    model, plain, tokens = TiedHead(), TiedHead(), torch.arange(9)[None]
    plain.load_state_dict(model.state_dict())
    try:
        optimizer = SaRA(model, density=0.3)
    except UnsupportedModelError:
        return
    model(tokens).square().sum().backward()
    plain(tokens).square().sum().backward()
    name, = [segment.name for segment in optimizer.store.support]
    chosen = next(iter(optimizer.store.support)).flat()
    assert torch.allclose(optimizer.values.grad, plain.embedding.weight.grad.view(-1)[chosen], rtol=1e-4), name


@pytest.mark.parametrize("normalise", [
    nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm,
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_weight_that_is_computed_in_each_forward_is_refused_by_name(normalise):
    model = nn.Sequential(nn.Linear(6, 6), normalise(nn.Linear(6, 6)), normalise(nn.Linear(6, 7)))
    with pytest.raises(UnsupportedModelError, match=r"1\.weight"):
        SaRA(model, density=0.3)


def test_a_model_made_in_inference_mode_is_trained_and_given_back():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 4))
    bits = every_bit(model)
    optimizer = SaRA(model, density=0.3, lr=1e-2)
    one_step(model, optimizer, small_batches(1)[0])
    assert not same_bits(model.state_dict(), bits)
    optimizer.detach(restore=True)
    assert same_bits(every_bit(model), bits)


@pytest.mark.parametrize("rule", [{"threshold": 1e-9}, {"density": 0.1, "count": 5}, {}, {"density": 2.0}])
def test_a_rule_that_fails_leaves_the_model_alone(rule):
    model = small_net()
    seen, bits = everything(model), every_bit(model)
    with pytest.raises(SelectionError):
        SaRA(model, **rule)
    assert everything(model) == seen and same_bits(every_bit(model), bits)
