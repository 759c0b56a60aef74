"""Whatever optimizer trains Δ, its own saved state goes on, and one of another length does not."""

import copy

import pytest
import torch

from sara_core import DeltaError, SaRA
from sara_core.training import optimizer_state
from tests.support.small_models import loss_of, repeatable, same_bits, small_batches, small_net, trained


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


class InBlocks(torch.Tensor):
    """As a package keeps moments in a class of its own."""


@pytest.mark.parametrize("other", [
    torch.zeros(6).as_subclass(InBlocks), torch.zeros(5, dtype=torch.uint8).as_subclass(InBlocks),
    torch.zeros(6, dtype=torch.uint8),
], ids=["of another dtype", "of another length", "of another class"])  # fmt: skip
def test_moments_of_a_class_of_their_own_must_be_alike_in_everything(other):
    moments = torch.zeros(6, dtype=torch.uint8).as_subclass(InBlocks)
    optimizer_state._check_like(moments.clone(), moments, "a moment", 6)
    with pytest.raises(DeltaError, match="a moment is no InBlocks of the vector's length"):
        optimizer_state._check_like(other, moments, "a moment", 6)


@pytest.mark.parametrize("optimizer, options", [
    (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {}), (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.Adafactor, {}), (torch.optim.RAdam, {}), (torch.optim.Rprop, {}), (torch.optim.ASGD, {}),
    (torch.optim.Adagrad, {}), (torch.optim.Adamax, {}), (torch.optim.NAdam, {}), (torch.optim.Adadelta, {}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
])  # fmt: skip
def test_every_optimizer_s_own_state_is_accepted_and_a_shorter_one_is_not(optimizer, options):
    state = trained(2, optimizer=optimizer, **options)[1].state_dict()
    model, ours = trained(0, optimizer=optimizer, **options)
    ours.load_state_dict(copy.deepcopy(state))
    assert same_bits(dict(ours.state[ours.values]), state["state"].get(0, {}))
    vectors = [name for name, value in state["state"].get(0, {}).items() if torch.is_tensor(value) and value.dim()]
    for name in vectors:
        damaged = copy.deepcopy(state)
        damaged["state"][0][name] = damaged["state"][0][name][:-1].clone()
        with pytest.raises(DeltaError, match=f"the optimizer's {name} is float32"):
            ours.load_state_dict(damaged)


class Forwarding(torch.optim.AdamW):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


class Growing(torch.optim.Optimizer):
    """What it keeps depends on the step, is in lists and tables, and one of its switches changes."""

    def __init__(self, vectors, rate=0.1):
        super().__init__(vectors, {"lr": rate, "never": float("inf"), "is_training": True})

    def step(self):
        (vector,) = self.param_groups[0]["params"]
        state = self.state[vector]
        if not vector.grad.any():
            return
        state["count"] = state.get("count", 0) + 1
        state.setdefault("history", []).append(vector.grad.clone())
        if state["count"] > 1:
            state["slow"] = {"average": torch.stack(state["history"]).mean(0), "weight": torch.tensor(0.5)}
        vector.data.sub_(vector.grad, alpha=self.param_groups[0]["lr"])
        self.param_groups[0]["is_training"] = state["count"] % 2 == 0


@pytest.mark.parametrize("optimizer, options", [
    (Forwarding, {"amsgrad": True}), (Growing, {}), (torch.optim.LBFGS, {"max_iter": 3}),
    (torch.optim.AdamW, {"lr": torch.tensor(1e-2), "foreach": False, "fused": True}),
])  # fmt: skip
def test_optimizers_of_every_kind_go_on_and_take_no_vector_of_another_length(optimizer, options):
    def steps(model, ours, count):
        for batch in small_batches(count):
            def closure():
                ours.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            if optimizer is torch.optim.LBFGS:
                ours.step(closure)
            else:
                closure()
                ours.step()

    def started():
        model = small_net()
        return model, SaRA(model, density=0.3, optimizer=optimizer, **options)

    straight, stopped, resumed = started(), started(), started()
    steps(*straight, 3)
    steps(*stopped, 3)
    state = copy.deepcopy(stopped[1].state_dict())
    damaged = copy.deepcopy(state)
    kept = damaged["state"][0].items()
    name, vector = next((n, v) for n, v in kept if torch.is_tensor(v) and v.dim() or n == "history")
    damaged["state"][0][name] = [vector[0][:-1].clone()] if name == "history" else vector[:-1].clone()
    with pytest.raises(DeltaError, match=f"{name} is float32"):
        resumed[1].load_state_dict(damaged)
    resumed[1].load_state_dict(state)
    steps(*straight, 2)
    steps(*resumed, 2)
    assert torch.equal(straight[1].values, resumed[1].values)


def test_one_huge_gradient_does_not_end_a_training_for_good():
    state = trained(2)[1].state_dict()
    state["state"][0]["exp_avg_sq"][3] = float("inf")
    trained(0)[1].load_state_dict(state)


class Packed(torch.optim.AdamW):
    """Saves its moments in a table of its own, as bitsandbytes does."""

    def state_dict(self):
        state = super().state_dict()
        kept = {number: dict(of_vector) for number, of_vector in state["state"].items()}
        return {**state, "state": {number: {"step": of_vector.pop("step"), "packed": of_vector}
                                   for number, of_vector in kept.items()}}  # fmt: skip

    def load_state_dict(self, state):
        unpacked = {number: {"step": kept["step"], **kept["packed"]} for number, kept in state["state"].items()}
        super().load_state_dict({**state, "state": unpacked})


def test_what_an_optimizer_packs_is_compared_as_it_packs_it():
    state = trained(2, optimizer=Packed)[1].state_dict()
    assert set(state["state"][0]) == {"step", "packed"}
    _, ours = trained(0, optimizer=Packed)
    ours.load_state_dict(copy.deepcopy(state))
    assert same_bits(ours.state_dict()["state"][0]["packed"], state["state"][0]["packed"])
    for damage in (lambda t: t[:-1].clone(), lambda t: t.half(), lambda t: None):
        damaged = copy.deepcopy(state)
        damaged["state"][0]["packed"]["exp_avg"] = damage(damaged["state"][0]["packed"]["exp_avg"])
        with pytest.raises(DeltaError, match="packed exp_avg is"):
            ours.load_state_dict(damaged)


class Noting(torch.optim.AdamW):
    """Keeps a number, a list and nothing yet besides its moments, from the first step on."""

    def step(self, closure=None):
        super().step(closure)
        (vector,) = self.param_groups[0]["params"]
        self.state[vector].update(largest=float(vector.grad.abs().max()), recent=[vector.grad.clone()], later=None)


def test_numbers_and_lists_that_an_optimizer_keeps_are_looked_at_too():
    state = trained(2, optimizer=Noting)[1].state_dict()
    _, ours = trained(0, optimizer=Noting)
    for name, value, words in (
        ("largest", float("nan"), "largest is nan"), ("largest", [float("inf")], "largest is inf"),
        ("recent", [state["state"][0]["recent"][0][:-1].clone()], "recent is float32"),
        ("later", torch.zeros(2), "later is float32"),
    ):  # fmt: skip
        damaged = copy.deepcopy(state)
        damaged["state"][0][name] = value
        with pytest.raises(DeltaError, match=words):
            ours.load_state_dict(damaged)
    ours.load_state_dict(copy.deepcopy(state))
    assert ours.state[ours.values]["largest"] == state["state"][0]["largest"] > 0


def test_a_part_that_an_untried_optimizer_never_keeps_is_no_error_of_python():
    _, ours = trained(0, optimizer=torch.optim.LBFGS)
    state = ours.state_dict()
    state["state"] = {0: {"sum": [1.0]}}
    ours.load_state_dict(state)  # nothing reads it
