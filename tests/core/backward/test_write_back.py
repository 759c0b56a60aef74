"""Weights written together, by torch in place of the kernels: the bits of one after the other, in few launches."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sara_core import SaRA
from sara_core.backward import write_back
from sara_core.backward.write_back import runs
from tests.support.small_models import every_bit, loss_of, same_bits, small_batches, small_net


class Asked(TorchDispatchMode):
    """Counts what torch is asked to compute or copy; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.count += not operation.is_view and "split" not in operation.name() and "detach" not in operation.name()
        return operation(*arguments, **(options or {}))


@pytest.fixture
def together(monkeypatch):
    """Every store writes as on a GPU without Triton."""
    from sara_core.backward.store import Store

    monkeypatch.setattr(Store, "_write_each", Store._write_together)


def mixed() -> nn.Module:
    """Weights of several dtypes, layouts and modes."""
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Conv1d(2, 3, 3), nn.Linear(3, 3).to(torch.bfloat16),
        nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), nn.Linear(2, 9),
    )  # fmt: skip
    with torch.inference_mode():
        model.append(nn.Linear(4, 2).requires_grad_(False))
    return model


def written(model, seed=0, **options) -> SaRA:
    optimizer = SaRA(model, density=0.4, **options)
    generator = torch.Generator().manual_seed(seed)
    optimizer.values.data.copy_(torch.randn(len(optimizer.values), generator=generator) * 0.1)
    optimizer.values.data[::4] = 0
    optimizer.store.write()
    return optimizer


@pytest.mark.parametrize("at_a_time", [1, 20, 1 << 22])
def test_the_bits_are_those_of_one_weight_after_the_other(request, monkeypatch, at_a_time):
    base = mixed()
    models = [copy.deepcopy(base) for _ in range(2)]
    written(models[0])
    request.getfixturevalue("together")
    monkeypatch.setattr(write_back, "TOGETHER", at_a_time)
    optimizer = written(models[1])
    assert same_bits(every_bit(models[0]), every_bit(models[1]))
    assert not same_bits(every_bit(models[1]), every_bit(base))
    optimizer.detach(restore=True)
    assert same_bits(every_bit(models[1]), every_bit(base))


def test_training_adjusting_and_going_on_have_the_same_bits(request):
    def trained() -> tuple:
        model = small_net()
        optimizer = SaRA(model, density=0.5, lr=1e-2)
        states = []
        for number, batch in enumerate(small_batches(6)):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            if number == 2:
                optimizer.adjust()
                states.append(optimizer.state_dict())
        after = every_bit(model)
        optimizer.load_state_dict(states[0])
        return after, every_bit(model), {"Δ": optimizer.values.detach().clone()}

    alone = trained()
    request.getfixturevalue("together")
    assert all(map(same_bits, trained(), alone))


def test_a_weight_takes_one_launch_and_all_of_them_a_dozen(together):
    counts = []
    for layers in (2, 12):
        optimizer = written(nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)]))
        optimizer.store.write()
        with Asked() as asked:
            optimizer.store.write()
        counts.append(asked.count)
    assert counts[1] - counts[0] == 10 and counts[0] <= 2 + 12


def test_nothing_is_kept_twice(together):
    optimizer = written(small_net())
    store = optimizer.store
    for tensors in ([s.crow for s in store.support], [s.col for s in store.support], store.base):
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


def test_a_weight_that_was_replaced_is_written_where_it_is_now(together):
    model = small_net()
    optimizer = written(model)
    before = every_bit(model)
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer._parameters["weight"] = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
            layer.weight.data.view(-1)[optimizer.store.support.segments[0].flat()[:1]] += 0
    optimizer.store.write()
    assert same_bits(every_bit(model), before)


def test_what_is_written_together_is_of_one_kind_and_no_longer_than_it_may_be(monkeypatch):
    class Elements(int):
        def __len__(self):
            return int(self)

    half, single = torch.zeros(1, dtype=torch.float16), torch.zeros(1)
    monkeypatch.setattr(write_back, "TOGETHER", 10)
    segments = [Elements(n) for n in (4, 0, 6, 1, 30, 2, 3, 5)]
    base = [single, single, single, single, single, half, None, half]
    assert runs(segments, base) == [[0, 2], [3], [4], [5], [7]]


class _Kernels:
    """Torch in the kernels' place; notes what it was asked to write."""

    def __init__(self):
        self.tables = []

    def write_(self, table, crow, col, base, values):
        self.tables.append(table)


def test_the_kernel_is_told_where_the_weights_are_and_autograd_that_they_changed(monkeypatch, together):
    kernels = _Kernels()
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)
    optimizer = SaRA(model, density=0.5)
    monkeypatch.setattr(write_back, "kernels_for", lambda device, dtype: kernels)
    versions = [layer.weight._version for layer in model]
    optimizer.store.write()
    optimizer.store.write()
    assert kernels.tables[0] is kernels.tables[1]
    addresses, first, pointers, rows, columns = kernels.tables[0].tolist()
    assert addresses == [layer.weight.data_ptr() for layer in model]
    assert first == [s.offset for s in optimizer.store.support]
    assert (pointers, rows, columns) == ([0, 5], [4, 2], [3, 4])
    assert all(layer.weight._version > version for layer, version in zip(model, versions))
    model[0].weight.data = model[0].weight.data.clone()
    optimizer.store.write()
    assert kernels.tables[2][0].tolist() == [layer.weight.data_ptr() for layer in model]


def test_weights_in_another_layout_are_left_to_torch(monkeypatch, together):
    model = nn.Sequential(nn.Conv2d(2, 3, 3)).to(memory_format=torch.channels_last).requires_grad_(False)
    expected = copy.deepcopy(model)
    kernels = _Kernels()
    monkeypatch.setattr(write_back, "kernels_for", lambda device, dtype: kernels)
    written(model)
    monkeypatch.undo()
    written(expected)
    assert not kernels.tables and same_bits(every_bit(model), every_bit(expected))




@pytest.mark.parametrize("other", [torch.zeros(4, 3, dtype=torch.float16), torch.zeros(1, 3)], ids=["dtype", "size"])
def test_the_kernel_writes_to_no_weight_that_has_become_another(monkeypatch, together, other):
    """It has nothing but an address, and would write beside it; torch refuses."""
    kernels = _Kernels()
    layer = nn.Linear(3, 4).requires_grad_(False)
    optimizer = SaRA(nn.Sequential(layer), density=0.9)
    monkeypatch.setattr(write_back, "kernels_for", lambda device, dtype: kernels)
    layer.weight.data = other
    with pytest.raises((RuntimeError, IndexError)):
        optimizer.store.write()
    assert not kernels.tables
