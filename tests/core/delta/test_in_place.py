"""Δ written in place from kept base values: again and at any strength, from anywhere, and every bit comes back."""

import threading

import pytest
import torch

from sara_core import SaRA
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.in_place import InPlaceChange
from sara_core.errors import DeltaError
from sara_core.tensors.elements import add_sparse_, added
from tests.core.delta.test_delta import DTYPES, bits, delta_for, entry, layouts, model, same, snapshot

pytestmark = pytest.mark.bits

STRENGTHS = [1.0, -0.7, 0.3, 0.0]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("layout", layouts(torch.float32))
def test_writing_again_is_as_writing_once(layout, dtype):
    weight = layouts(dtype)[layout]
    before, change = weight.clone(), entry(weight.shape, max(1, weight.numel() // 3))
    once = []
    for strength in STRENGTHS:
        fresh = before.clone().as_strided(weight.size(), weight.stride()) if weight.is_contiguous() else before.clone()
        InPlaceChange(fresh, change.indices, change.values).write(strength)
        once.append(bits(fresh))
    written = InPlaceChange(weight, change.indices, change.values)
    for strength, expected in zip([*STRENGTHS, *STRENGTHS], [*once, *once]):
        written.write(strength)
        assert torch.equal(bits(weight), expected)
    written.restore()
    assert torch.equal(bits(weight), bits(before))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1.0, -1.0, 1e-30])
def test_no_change_keeps_the_sign_of_zero(dtype, strength):
    base = torch.tensor([-0.0, -0.0, 0.0, 0.0, -0.0, 2.0], dtype=dtype)
    values = torch.tensor([0.0, -0.0, 0.0, -0.0, 1e-30, -2.0 / strength if strength != 1e-30 else 0.0])
    expected = base.float() + values * strength
    expected[:4] = base[:4].float()
    if strength == 1e-30:
        expected[4] = base[4].float()  # the product is too small for float32: 0
    assert torch.equal(bits(added(base, values, strength)), bits(expected.to(dtype)))
    weight = base.clone()
    add_sparse_(weight, torch.arange(6, dtype=torch.int32), values, strength)
    assert torch.equal(bits(weight), bits(expected.to(dtype)))


def test_a_zero_that_was_not_moved_keeps_its_sign_in_training():
    target = torch.nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        target.weight.copy_(torch.full((8, 8), -0.0))
    optimizer = SaRA(target, density=0.5, lr=0.1)
    x = torch.zeros(1, 8)
    x[0, 3] = 1.0  # one column gets a gradient
    (target(x) * -1.0).sum().backward()
    optimizer.step()
    moved = target.weight != 0
    assert 0 < int(moved.sum()) <= 8 and not moved[:, :3].any() and not moved[:, 4:].any()
    assert torch.equal(torch.signbit(target.weight), ~moved)


@pytest.mark.parametrize("make_in_inference", [False, True])
@pytest.mark.parametrize("write_in_inference", [False, True])
@pytest.mark.parametrize("from_another_thread", [False, True])
def test_it_writes_from_anywhere(make_in_inference, write_in_inference, from_another_thread):
    with torch.inference_mode(make_in_inference):
        weight = torch.randn(6, 5)
        before = weight.clone()
    change, failures = entry((6, 5), 9), []

    def work():
        try:
            with torch.inference_mode(write_in_inference):
                written = InPlaceChange(weight, change.indices, change.values)
                written.write(0.5)
            assert torch.equal(weight.flatten()[change.indices.long()],
                               added(before.flatten()[change.indices.long()], change.values, 0.5))
            written.restore()
        except BaseException as error:
            failures.append(error)

    if from_another_thread:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    assert not failures and torch.equal(bits(weight), bits(before))


def test_a_handle_goes_to_any_strength():
    target = model()
    before, delta = snapshot(target), delta_for(target)
    handle = delta.apply_(target, 0)
    assert same(snapshot(target), before)
    for strength in (0.8, -0.3, 0, 0.8):
        handle.set_strength(strength)
        other = model()
        delta.apply_(other, strength)
        assert same(snapshot(target), snapshot(other))
    handle.remove()
    assert same(snapshot(target), before)
    with pytest.raises(DeltaError, match="apply it again"):
        handle.set_strength(1.0)
    assert same(snapshot(target), before)


def test_another_strength_is_written_over_the_first_and_the_base_never_shows_between(monkeypatch):
    """Another thread may be computing with the model."""
    target = model()
    handle = delta_for(target).apply_(target)
    monkeypatch.setattr(InPlaceChange, "restore", lambda change: pytest.fail("the base showed"))
    handle.set_strength(0.5)
    other = model()
    delta_for(other).apply_(other, 0.5)
    assert same(snapshot(target), snapshot(other))


def test_eight_rounding_steps_are_what_undoing_leaves():
    weight = torch.ones(1)
    change = InPlaceChange(weight, torch.tensor([0]), torch.tensor([0.5]))
    for steps, in_place in ((0, True), (8, True), (9, False)):
        weight.fill_(1 + steps * torch.finfo(weight.dtype).eps)
        assert change.is_in_place() == in_place


@pytest.mark.parametrize("size, step", [(10_000, 16), (1e-4, 2.0**-23)], ids=["large", "small"])
def test_half_precision_weights_are_looked_at_in_single(size, step):
    """The length of the vector of them all is more, or its square less, than float16 has numbers for."""
    weight = torch.full((100,), size, dtype=torch.float16)
    change = InPlaceChange(weight, torch.arange(100), torch.full((100,), size / 4))
    change.write(1.0)
    assert change.is_in_place()
    weight += step * 16
    assert not change.is_in_place()


def test_the_later_one_must_go_first():
    target = model()
    first, second = delta_for(target, 1).apply_(target), delta_for(target, 2).apply_(target)
    changed = snapshot(target)
    with pytest.raises(DeltaError, match="later one first"):
        first.set_strength(0.5)
    assert same(snapshot(target), changed)
    second.set_strength(0)
    first.set_strength(0.5)
    second.set_strength(1.0)  # now it is the later one again, upon the other strength
    expected = model()
    delta_for(expected, 1).apply_(expected, 0.5)
    delta_for(expected, 2).apply_(expected)
    assert same(snapshot(target), snapshot(expected))
    with pytest.raises(DeltaError, match="later one first"):
        first.remove()
    second.remove()
    first.remove()
    assert same(snapshot(target), snapshot(model()))


def test_strength_must_be_finite_later_too():
    target = model()
    handle = delta_for(target).apply_(target)
    changed = snapshot(target)
    with pytest.raises(DeltaError, match="finite"):
        handle.set_strength(float("nan"))
    assert same(snapshot(target), changed)


def test_weights_that_share_memory_follow_a_strength_together():
    def applied(strength):
        whole = torch.arange(12.0)
        weights = {"a": whole[:8], "b": whole[4:]}
        return whole, SparseDelta({name: entry((8,), 8, place) for place, name in enumerate(weights)}).apply_(
            weights, strength
        )

    whole, handle = applied(1.0)
    handle.set_strength(0.25)
    assert torch.equal(whole, applied(0.25)[0])
    handle.remove()
    assert torch.equal(whole, torch.arange(12.0))


def test_threads_with_their_own_models_do_not_disturb_each_other():
    failures = []

    def work(seed):
        try:
            target = model()
            before, delta = snapshot(target), delta_for(target, seed)
            for _ in range(50):
                handle = delta.apply_(target, 0.5)
                handle.set_strength(1.0)
                handle.remove()
            assert same(snapshot(target), before)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_is_kept_is_the_positions_and_the_base_values():
    """No copy of Δ: as many deltas as a host has loaded may be in place at once."""
    weight = torch.zeros(100, dtype=torch.float16)
    change = SparseEntry(torch.arange(10, dtype=torch.int32), torch.ones(10), (100,))
    written = InPlaceChange(weight, change.indices, change.values)
    assert written.values is change.values and written.indices is change.indices
    assert written.base.nbytes == 20


def test_some_of_the_elements_tell_whether_another_has_written_them_all():
    weight = torch.randn(40, 50)
    change = InPlaceChange(weight, torch.arange(0, 2000, 3, dtype=torch.int32), torch.randn(667))
    change.write(0.8)
    assert change.is_in_place(16)
    weight[39, 38:] += 1  # behind the last of them
    assert change.is_in_place(16) and not change.is_in_place()
    weight += 0.01
    assert not change.is_in_place(16)
