"""The store by itself: what identifies the base under a support."""

import copy
from threading import get_ident

import pytest
import torch
from torch import nn

from sara_core import DeltaError
from sara_core.backward import store as store_module
from sara_core.backward.access import AddedCopy
from sara_core.backward.parameters import TrainedParameters
from sara_core.backward.store import Store
from sara_core.backward.support import Support


def bound(*, positions=(1, 5), name="w", shape=(3, 4), base=1.0, dtype=torch.float32) -> Store:
    """A store over one weight, of which all elements have the value `base`."""
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype).requires_grad_(False)
    layer.weight.fill_(base)
    store = Store(Support.from_indices({name: torch.tensor(positions, dtype=torch.int32)}, {name: shape}))
    store.bind(0, layer, in_place=True)
    return store


OTHERS = {
    "other rows": {"positions": [1, 9]},  # the same columns, the same base values
    "other columns": {"positions": [1, 6]},
    "other base values": {"base": 2.0},
    "another name": {"name": "v"},
    "another shape": {"shape": (4, 4)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_base_or_support_has_another_fingerprint_and_its_state_is_refused(other):
    store, same, other = bound(), bound(), bound(**other)
    assert store.base_fingerprint == same.base_fingerprint != other.base_fingerprint
    store.check_state(same.state())
    with pytest.raises(DeltaError, match="over another base model|trains other weights"):
        store.check_state(other.state())


def test_trained_values_are_read_without_a_graph():
    store = bound()
    assert store.values.requires_grad and not store.trained_values(0).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_trained_values_are_single_precision_whatever_the_weight_is(dtype):
    store = bound(dtype=dtype)
    store.values.data += 2.0**-20  # bfloat16 would not keep it
    trained = store.trained_values(0)
    assert trained.dtype == torch.float32 and torch.equal(trained, torch.full((2,), 1 + 2.0**-20))


def test_what_is_saved_stays_when_training_goes_on():
    store = bound()
    state, delta = store.state(), store.delta()
    store.values.data += 1
    assert not state["values"].any() and not delta.entries["w"].values.any()
    assert not state["values"].requires_grad and not delta.entries["w"].values.requires_grad


@pytest.mark.parametrize("in_place", [True, False])
def test_a_copy_with_the_change_in_it_has_no_graph_and_is_a_copy(in_place):
    layer = nn.Linear(4, 3, bias=False)
    store = Store(Support.from_indices({"w": torch.tensor([1, 5], dtype=torch.int32)}, {"w": (3, 4)}))
    store.bind(0, layer, in_place)
    store.values.data += 1
    if in_place:
        layer.requires_grad_(False)
        store.write()
        layer.requires_grad_(True)
    before = layer.weight.detach().clone()
    copy = TrainedParameters(store, {"weight": 0}).copy(0)
    changed = before.view(-1).clone()
    changed[[1, 5]] += 0 if in_place else 1
    assert torch.equal(copy.view(-1), changed) and not copy.requires_grad
    assert copy.data_ptr() != layer.weight.data_ptr() and torch.equal(layer.weight.detach(), before)
    added = AddedCopy(store, 0).add(layer.weight, torch.float32)
    assert not added.requires_grad and torch.equal(layer.weight.detach(), before)


@pytest.mark.parametrize("in_place", [True, False])
def test_withdrawn_the_model_is_the_base_and_afterwards_what_it_was(in_place):
    layer = nn.Linear(4, 3, bias=False).requires_grad_(False)
    base = layer.weight.clone()
    store = Store(Support.from_indices({"w": torch.tensor([1, 5, 7], dtype=torch.int32)}, {"w": (3, 4)}))
    store.bind(0, layer, in_place)
    store.values.data += torch.tensor([0.3, 0.6, 0.9])
    store.freeze(torch.tensor([True, False, False]))
    store.write(frozen=True)

    def computed_with():
        return layer.weight.clone() if in_place else TrainedParameters(store, {"weight": 0}).copy(0)

    trained, values = computed_with(), store.values.detach().clone()
    assert (trained != base).sum() == 3
    with pytest.raises(KeyError), store.withdrawn():
        assert torch.equal(computed_with(), base)
        raise KeyError
    assert torch.equal(computed_with(), trained) and torch.equal(store.values.detach(), values)


def bound_layers(layers: nn.ModuleList) -> Store:
    """A store over every third element of each layer's weight, none of a single row's, with a change for each."""
    numels = [layer.weight.numel() if layer.out_features > 1 else 0 for layer in layers]
    indices = {str(n): torch.arange(0, numel, 3, dtype=torch.int32) for n, numel in enumerate(numels)}
    store = Store(Support.from_indices(indices, {str(n): layer.weight.shape for n, layer in enumerate(layers)}))
    for number, layer in enumerate(layers):
        store.bind(number, layer, in_place=True)
    store.values.data.copy_(torch.linspace(-1, 1, store.support.nnz))
    return store


@pytest.fixture
def two_threads(monkeypatch):
    """Stores write with two threads, however few elements there are."""
    monkeypatch.setattr(store_module, "WORTH_THREADS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_a_time, calls", [(1 << 18, 5), (1, 3 + 50 + 1 + 20 + 33), (40, 1 + 25 + 1 + 10 + 11)])
def test_what_threads_write_together_has_the_bits_of_one_weight_after_the_other(
    monkeypatch, two_threads, dtype, at_a_time, calls
):
    monkeypatch.setattr(store_module, "THREAD_ELEMENTS", at_a_time)
    layers = nn.ModuleList(nn.Linear(40, rows, dtype=dtype) for rows in (3, 50, 1, 20, 33)).requires_grad_(False)
    by_threads, writers = copy.deepcopy(layers), []
    write = store_module.overwrite_
    monkeypatch.setattr(store_module, "overwrite_", lambda *given: writers.append(get_ident()) or write(*given))
    bound_layers(by_threads).write()
    assert len(writers) == calls and get_ident() not in writers
    monkeypatch.setattr(store_module, "WORTH_THREADS", 1 + sum(layer.weight.numel() for layer in layers))
    before = copy.deepcopy(layers)
    bound_layers(layers).write()
    assert writers[calls:] == [get_ident()] * len(layers)
    for mine, theirs, untouched in zip(layers, by_threads, before):
        assert torch.equal(mine.weight, theirs.weight)
        assert torch.equal(mine.weight, untouched.weight) == (mine.out_features == 1)


def test_what_a_thread_cannot_write_is_raised(monkeypatch, two_threads):
    def refused(*given):
        raise MemoryError("no page left")

    monkeypatch.setattr(store_module, "overwrite_", refused)
    with pytest.raises(MemoryError, match="no page left"):
        bound().write()
