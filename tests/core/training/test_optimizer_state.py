"""What comes out of an optimizer: the delta, a state that continues bit for bit, and no more memory than it needs."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from sara_core import DeltaError, SaRA
from sara_core.backward import weight_gradient
from sara_core.selection import magnitudes
from tests.support.small_models import (
    counted_memory, every_bit, loss_of, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip

pytestmark = pytest.mark.bits


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_delta_on_a_fresh_copy_gives_the_very_weights_that_training_ended_with(dtype):
    model, fresh = small_net(dtype=dtype), small_net(dtype=dtype).requires_grad_(False)
    ours = SaRA(model, density=0.3, lr=1e-2)
    base = every_bit(fresh)
    for x, y in small_batches(3):
        ours.zero_grad()
        loss_of(model, (x.to(dtype), y.to(dtype))).backward()
        ours.step()
    delta = ours.delta({"modelspec.title": "a test"})
    assert delta.metadata == {"modelspec.title": "a test"}
    assert set(delta.entries) <= set(dict(small_net().named_parameters()))
    delta.apply_(fresh)
    assert same_bits(every_bit(fresh), model.state_dict())
    x = small_batches(1)[0][0].to(dtype)
    for mode in (torch.no_grad, torch.inference_mode):  # evaluation in the middle of training
        with mode():
            assert torch.equal(model(x), fresh(x))
    for strength in (0.0, 0.7, -1.5):
        fresh = small_net(dtype=dtype)
        delta.apply_(fresh, strength)
        for name, weight in fresh.state_dict().items():
            dense = torch.zeros(weight.shape)
            if name in delta.entries:
                dense.view(-1)[delta.entries[name].indices.long()] = delta.entries[name].values
            if name != "tied.weight":
                assert torch.equal(weight, (base[name].float() + strength * dense).to(dtype)), (name, strength)


def test_a_delta_does_not_change_when_training_goes_on():
    model = small_net()
    ours = SaRA(model, density=0.3, lr=1e-2)
    deltas = []
    for batch in small_batches(2):
        ours.zero_grad()
        loss_of(model, batch).backward()
        ours.step()
        deltas.append((ours.delta(), ours.values.detach().clone()))
    for delta, values in deltas:
        assert torch.equal(torch.cat([entry.values for entry in delta.entries.values()]), values)


def train_some(model, ours, scheduler, batches):
    for batch in batches:
        ours.zero_grad()
        loss_of(model, batch).backward()
        ours.step()
        scheduler.step()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_n_plus_m_steps_are_n_steps_saved_and_m_steps_continued(optimizer):
    options = dict(density=0.3, lr=1e-2, optimizer=optimizer, weight_gradient="dense")
    if optimizer is torch.optim.SGD:
        options["momentum"] = 0.9

    def start():
        model = small_net()
        ours = SaRA(model, **options)
        return model, ours, lr_scheduler.CosineAnnealingLR(ours, 10)

    batches = small_batches(8)
    straight, stopped, resumed = start(), start(), start()
    train_some(*straight, batches)
    train_some(*stopped, batches[:5])
    file = io.BytesIO()
    torch.save((stopped[1].state_dict(), stopped[2].state_dict()), file)
    file.seek(0)
    state, scheduler_state = torch.load(file, weights_only=True)
    resumed[1].load_state_dict(state)
    resumed[2].load_state_dict(scheduler_state)
    train_some(*resumed, batches[5:])
    assert torch.equal(resumed[1].values, straight[1].values)
    assert same_bits(every_bit(resumed[0]), every_bit(straight[0]))
    for key, value in straight[1].state[straight[1].values].items():
        assert torch.equal(torch.as_tensor(resumed[1].state[resumed[1].values][key]), torch.as_tensor(value)), key
    assert resumed[1].param_groups[0]["lr"] == straight[1].param_groups[0]["lr"]


def test_loading_a_state_brings_the_live_weights_along():
    first, second = small_net(), small_net()
    ours, other = SaRA(first, density=0.3, lr=1e-2), SaRA(second, density=0.3, lr=1e-2)
    loss_of(first, small_batches(1)[0]).backward()
    ours.step()
    state = ours.state_dict()
    other.load_state_dict(state)
    assert same_bits(every_bit(second), every_bit(first))
    values = ours.values.detach().clone()
    loss_of(first, small_batches(1)[0]).backward()
    ours.step()
    assert torch.equal(state["sara"]["values"], values) and torch.equal(other.values, values)


def test_a_state_is_refused_by_another_base_and_another_selection():
    state = SaRA(small_net(), density=0.3).state_dict()
    before = copy.deepcopy(state["sara"]["values"])
    one_bit = small_net()
    chosen = SaRA(small_net(), density=0.3).store.support.segments[0].flat()
    with torch.no_grad():
        one_bit.conv.weight.view(-1)[chosen[0]] *= 1 + 2**-23
    for model, rule in [(small_net(seed=1), {"density": 0.3}), (one_bit, {"density": 0.3}),
                        (small_net(), {"density": 0.31}), (small_net(), {"threshold": 0.1})]:  # fmt: skip
        with pytest.raises(DeltaError, match="use the same selection|use the base"):
            SaRA(model, **rule).load_state_dict(state)
    with pytest.raises(DeltaError, match="other weights of the model.*patterns"):
        SaRA(small_net(), density=0.3, exclude=["conv"]).load_state_dict(state)
    with pytest.raises(DeltaError, match="no 'sara' part"):
        SaRA(small_net(), density=0.3).load_state_dict(torch.optim.AdamW(nn.Linear(2, 2).parameters()).state_dict())
    assert torch.equal(state["sara"]["values"], before)


def test_nothing_of_the_size_of_the_model_is_allocated(monkeypatch):
    for module, name, size in [(magnitudes, "CHUNK", 1 << 12), (magnitudes, "SAMPLE", 1 << 12),
                               (weight_gradient, "DENSE_BYTES", 1 << 14)]:  # fmt: skip
        monkeypatch.setattr(module, name, size)
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(8)])
    x = torch.randn(4, 256)
    with counted_memory() as memory:
        ours = SaRA(model, density=0.005)
        for _ in range(2):
            ours.zero_grad()
            model(x).sum().backward()
            ours.step()
    assert memory.peak <= 4 * 256 * 256  # one weight of eight
    assert memory.left <= 8 * 4 * ours.store.support.nnz + 8 * 4 * 257


def test_what_stays_is_six_vectors_with_the_positions_once():
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(8)])
    x = torch.randn(4, 256)
    with counted_memory() as memory:
        ours = SaRA(model, density=0.02)
        model(x).sum().backward()
        ours.step()
    # Δ, its gradient, two moments, base values and columns; row pointers
    assert memory.left <= 6 * 4 * ours.store.support.nnz + 8 * 4 * 257 + 1024


def test_a_model_and_its_optimizer_are_copied_together():
    model = small_net()
    ours = SaRA(model, density=0.3, lr=1e-2)
    twin, its_own = copy.deepcopy((model, ours))
    loss_of(twin, small_batches(1)[0]).backward()
    its_own.step()
    assert its_own.values is twin.sara_values and its_own.values.abs().max() > 0
    assert not ours.values.any()
