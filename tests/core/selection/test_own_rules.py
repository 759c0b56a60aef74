"""Rules from outside: a function given to `select` and `SaRA`, or a Rule added to RULES; and what they must return."""

import copy
import functools
import json

import pytest
import torch

from sara_core import SaRA, SelectionError, select
from sara_core.selection.rules import RULES, Rule
from tests.core.selection.test_select import model_weights
from tests.support.small_models import every_bit, loss_of, repeatable, same_bits, small_batches, small_net

COUNT = 40


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def drawn(request, bonus=0.0):
    """Elements with the largest |w| plus a random number, as masks."""
    masks = {}
    for names, n in request.shares:
        noise = {name: torch.rand(request.weights[name].shape, generator=request.generator) for name in names}
        scores = {name: request.weights[name].abs().float() + noise[name] + bonus for name in names}
        lowest = torch.cat([score.flatten() for score in scores.values()]).topk(n).values[-1]
        masks |= {name: score >= lowest for name, score in scores.items()}
    return masks


NAME = "tests.core.selection.test_own_rules.drawn"


def same_indices(first, second):
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[name], index) for name, index in second.items())


@pytest.mark.parametrize("options", [{"count": 300}, {"density": 0.1}, {"density": 0.1, "per_layer": True}])
def test_a_function_chooses_and_the_file_names_it(options):
    weights = model_weights()
    result, again, other = (select(weights, rule=drawn, seed=seed, **options) for seed in (5, 5, 6))
    same_indices(result.indices, again.indices)
    assert any(not torch.equal(index, other.indices[name]) for name, index in result.indices.items())
    assert result.count == sum(map(len, result.indices.values())) and result.theta is None
    assert result.rule == {"rule": NAME, **options, "seed": 5}
    assert json.loads(json.dumps(result.rule)) == result.rule
    for index in result.indices.values():
        assert index.dtype == torch.int32 and bool((index[1:] > index[:-1]).all())


@pytest.mark.parametrize("name", ["smallest", "largest", "random"])
@pytest.mark.parametrize("options", [{"count": 300}, {"density": 0.1, "per_layer": True}])
def test_a_function_can_do_what_the_rules_here_do(name, options):
    weights = model_weights()
    theirs = select(weights, rule=RULES[name].choose, seed=3, **options)
    same_indices(select(weights, rule=name, seed=3, **options).indices, theirs.indices)


class Shifted:
    def __call__(self, request):
        return drawn(request, 1.0)


@pytest.mark.parametrize("rule, name", [
    (functools.partial(drawn, bonus=1.0), NAME), (Shifted(), NAME.replace("drawn", "Shifted")), (Rule(drawn), NAME),
])  # fmt: skip
def test_whatever_can_be_called_has_a_name(rule, name):
    assert select(model_weights(), count=9, rule=rule).rule["rule"] == name


def trained(model, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def test_a_function_trains_through_sara_and_is_resumed_exactly():
    batches = small_batches(6)
    model, resumed = small_net(), small_net()
    optimizer = SaRA(model, count=COUNT, rule=drawn, seed=7, lr=1e-2)
    trained(model, optimizer, batches[:3])
    state = copy.deepcopy(optimizer.state_dict())
    trained(model, optimizer, batches[3:])
    assert optimizer.values.all() and optimizer.selection.rule["rule"] == NAME
    later = SaRA(resumed, count=COUNT, rule=drawn, seed=7, lr=1e-2)
    later.load_state_dict(state)
    trained(resumed, later, batches[3:])
    assert torch.equal(optimizer.values, later.values) and same_bits(every_bit(model), every_bit(resumed))


def test_a_rule_in_the_registry_has_a_name_and_says_what_it_takes(monkeypatch):
    monkeypatch.setitem(RULES, "drawn", Rule(drawn, takes_seed=True))
    monkeypatch.setitem(RULES, "without seed", Rule(drawn))
    weights = model_weights()
    assert select(weights, count=9, rule="drawn", seed=2).rule == {"rule": "drawn", "count": 9, "seed": 2}
    assert select(weights, count=9, rule="without seed").rule == {"rule": "without seed", "count": 9}
    with pytest.raises(SelectionError, match="smallest, largest, random, gradient, drawn, without seed"):
        select(weights, count=9, rule="drown")


def largest_gradients(request):
    """Of |∂L/∂w| alone, whatever w is."""
    return request.by_gradient({name: torch.ones_like(weight) for name, weight in request.weights.items()},
                               request.shares)  # fmt: skip


def test_a_rule_of_ones_own_can_look_at_the_gradient_of_a_loss():
    batch, = small_batches(1)
    model, dense = small_net(), small_net()
    optimizer = SaRA(
        model, count=COUNT, rule=Rule(largest_gradients, needs_loss=True), loss=lambda: loss_of(model, batch)
    )
    loss_of(dense, batch).backward()
    gradients = {name: parameter.grad.abs().flatten() for name, parameter in dense.named_parameters()
                 if parameter.dim() > 1}  # fmt: skip
    lowest = torch.cat(list(gradients.values())).topk(COUNT).values[-1]
    assert sum(map(len, optimizer.store.support)) == COUNT
    for segment in optimizer.store.support:
        assert (gradients[segment.name][segment.flat()] > 0.999 * lowest).all()
    with pytest.raises(SelectionError, match=r"'tests\.\S+\.largest_gradients' needs a loss"):
        SaRA(small_net(), count=COUNT, rule=Rule(largest_gradients, needs_loss=True))


def small_linear_ones(weights, threshold):
    return {"linear": weights["linear"].abs() < threshold}


def test_a_rule_may_divide_by_a_threshold():
    rule = Rule(drawn, below=small_linear_ones)
    weights = model_weights()
    result = select(weights, threshold=0.2, rule=rule)
    assert list(result.indices) == ["linear"] and result.theta == 0.2
    assert torch.equal(result.indices["linear"].long(), (weights["linear"].abs() < 0.2).flatten().nonzero().view(-1))
    counted = select(weights, count=9, rule=rule)
    assert counted.theta == max(float(weights[n].flatten()[i.long()].abs().max()) for n, i in counted.indices.items())
    with pytest.raises(SelectionError, match="0 of .* below the threshold"):
        select(weights, threshold=1e-9, rule=Rule(drawn, below=lambda weights, threshold: {}))


A, B = torch.arange(12.0).view(3, 4), torch.arange(5.0)


def positions(*numbers, dtype=torch.int32):
    return torch.tensor(numbers, dtype=dtype)


@pytest.mark.parametrize("chosen", [
    {"a": positions(0, 5, 11)},
    {"b": positions(4), "a": positions(1, 2, dtype=torch.int64)},
    {"a": torch.arange(12).view(3, 4) < 3, "b": torch.empty(0, dtype=torch.int32)},
    {"b": torch.tensor([True, False, True, False, True])},
])  # fmt: skip
def test_positions_and_masks_are_taken(chosen):
    result = select({"a": A, "b": B}, count=3, rule=lambda request: chosen)
    found = [(name, int(i)) for name, index in result.indices.items() for i in index]
    expected = [(name, i) for name in "ab" if name in chosen for i in (
        chosen[name].flatten().nonzero().view(-1) if chosen[name].dtype == torch.bool else chosen[name]).tolist()]
    assert found == expected and len(found) == 3


def test_a_mask_of_another_memory_layout_means_the_same_elements():
    weight = torch.randn(2, 3, 4, 4)
    mask = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    mask[1, 2, 3, 0] = mask[0, 1, 0, 2] = True
    for layout in (torch.contiguous_format, torch.channels_last):
        result = select({"w": weight}, count=2, rule=lambda request: {"w": mask.to(memory_format=layout)})
        assert result.indices["w"].tolist() == [18, 92]


@pytest.mark.parametrize("chosen, message", [
    ([0, 1, 2], "returned a list, no dict"),
    (None, "returned a NoneType, no dict"),
    ({"c": positions(0, 1, 2)}, "chose from 'c', which it was not given"),
    ({"a": [0, 1, 2]}, "returned a list for 'a', no tensor"),
    ({"a": positions(0, 1, 1)}, "positions in 'a' that do not increase"),
    ({"a": positions(2, 1, 0)}, "positions in 'a' that do not increase"),
    ({"a": positions(10, 11, 12)}, "from 10 to 12 in 'a', which has 12 elements"),
    ({"b": positions(-1, 0, 1)}, "from -1 to 1 in 'b', which has 5 elements"),
    ({"a": positions(0, 1, dtype=torch.int64), "b": torch.tensor([1.0])}, "torch.float32 for 'b'"),
    ({"a": positions(0, 1, 2).view(1, 3)}, "2-dimensional torch.int32 for 'a'"),
    ({"a": torch.ones(12, dtype=torch.bool)}, r"mask of shape \[12\] for 'a', which has \[3, 4\]"),
    ({"a": positions(0, 1)}, "chose 2 elements of the 2 weights from 'a' to 'b', where 3 were asked for"),
    ({"a": positions(0, 1), "b": positions(0, 1)}, "chose 4 elements"),
    ({}, "chose 0 elements"),
])  # fmt: skip
def test_what_breaks_the_contract_is_told_by_rule_and_weight(chosen, message):
    def careless(request):
        return chosen

    with pytest.raises(SelectionError, match=f"careless' .*{message}"):
        select({"a": A, "b": B}, count=3, rule=careless)


def test_per_layer_the_weight_with_too_few_is_named():
    def uneven(request):
        return {"a": positions(0, 1, 2), "b": positions(0, 1)}

    with pytest.raises(SelectionError, match="chose 3 elements of 'a', where 2 were asked for"):
        select({"a": A, "b": B}, density=0.2, per_layer=True, rule=uneven)


def test_a_rule_gets_the_models_own_memory_without_a_graph():
    layer, seen = torch.nn.Linear(4, 4), []

    def rule(request):
        seen.extend(request.weights.values())
        return {"w": torch.tensor([1, 2])}

    select({"w": layer.weight}, count=2, rule=rule)
    weight, = seen
    assert not weight.requires_grad and weight.data_ptr() == layer.weight.data_ptr()


def test_a_rule_that_writes_into_a_weight_is_refused():
    def hasty(request):
        return {"b": (-request.weights["b"].abs_()).topk(3).indices.sort().values}

    with pytest.raises(SelectionError, match="hasty' has written into 'b'.*load the model again"):
        select({"a": A.clone(), "b": B.clone()}, count=3, rule=hasty)
    assert SaRA(small_net(), count=COUNT, rule=drawn).selection.count == COUNT  # parameters, which must not change


def test_what_a_rule_raises_itself_comes_through():
    def failing(request):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        select({"a": A}, count=3, rule=failing)


@pytest.mark.parametrize("rule", [None, 3, "drown"])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(SelectionError, match=f"no selection rule '{rule}'"):
        select({"a": A}, count=3, rule=rule)
