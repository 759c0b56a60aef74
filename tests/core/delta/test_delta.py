"""SparseDelta: what it accepts, how it combines, and that applying is exact and reversible."""

import math

import pytest
import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.in_place import InPlaceChange
from sara_core.errors import DeltaError, UnsupportedModelError
from sara_core.tensors.elements import add_sparse_, gather, scatter_

pytestmark = pytest.mark.bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def entry(shape, count, seed=0, dtype=torch.float32, scale=0.01):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(math.prod(shape), generator=generator)[:count].sort().values.to(torch.int32)
    return SparseEntry(positions, (torch.randn(count, generator=generator) * scale).to(dtype), tuple(shape))


def dense(entry):
    """The entry as a float32 tensor of the weight's shape."""
    whole = torch.zeros(math.prod(entry.shape))
    whole[entry.indices.long()] = entry.values.float()
    return whole.view(entry.shape)


def bits(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def layouts(dtype):
    """One tensor of each memory layout a weight may have, all of them writable."""
    torch.manual_seed(1)
    return {
        "contiguous": torch.randn(6, 5, 3, 3).to(dtype),
        "channels last": torch.randn(6, 5, 3, 3).to(dtype).to(memory_format=torch.channels_last),
        "transposed": torch.randn(7, 9).to(dtype).t(),
        "slice of a larger one": torch.randn(8, 9).to(dtype).narrow(1, 2, 5),
        "one element": torch.randn(1).to(dtype),
        "scalar": torch.randn(()).to(dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("layout", layouts(torch.float32))
def test_elements_are_found_in_logical_order(layout, dtype, index_dtype):
    weight = layouts(dtype)[layout]
    positions = entry(weight.shape, max(1, weight.numel() // 3)).indices.to(index_dtype)
    expected = weight.contiguous().view(-1)[positions.long()]
    assert torch.equal(gather(weight, positions), expected)

    before = weight.clone()
    scatter_(weight, positions, expected + 1)
    changed = before.contiguous().view(-1).clone()
    changed[positions.long()] = expected + 1
    assert torch.equal(weight.contiguous().view(-1), changed)


def test_writing_into_a_slice_leaves_its_surroundings():
    whole = torch.zeros(4, 6)
    scatter_(whole.narrow(1, 2, 2), torch.tensor([0, 3, 7], dtype=torch.int32), torch.ones(3))
    assert whole.nonzero().tolist() == [[0, 2], [1, 3], [3, 3]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", layouts(torch.float32))
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_add_sparse_rounds_once(layout, dtype, strength):
    weight = layouts(dtype)[layout]
    change = entry(weight.shape, max(1, weight.numel() // 2))
    expected = weight.clone()
    on_support = dense(change) != 0
    exact = (weight.float() + dense(change) * strength).to(dtype)
    expected[on_support] = exact[on_support]
    add_sparse_(weight, change.indices, change.values, strength)
    assert torch.equal(bits(weight), bits(expected))


def test_add_sparse_does_not_depend_on_the_position():
    # Vectorised loops may fuse multiply and add where the scalar remainder does not.
    weight, value = torch.full((37,), 0.1), torch.full((37,), 0.3)
    add_sparse_(weight, torch.arange(37, dtype=torch.int32), value, 0.7)
    assert len(weight.unique()) == 1


def test_inference_tensors_can_be_written_anywhere():
    with torch.inference_mode():
        weight = torch.zeros(5)
    add_sparse_(weight, torch.tensor([1], dtype=torch.int32), torch.ones(1))
    with torch.inference_mode():
        add_sparse_(weight, torch.tensor([1], dtype=torch.int32), torch.ones(1))
        ordinary = torch.nn.Parameter(torch.zeros(5))
    ordinary = torch.nn.Parameter(torch.zeros(5))
    with torch.inference_mode():
        add_sparse_(ordinary, torch.tensor([2], dtype=torch.int32), torch.ones(1))
    assert weight.tolist() == [0, 2, 0, 0, 0] and ordinary.tolist() == [0, 0, 1, 0, 0]


GOOD = SparseEntry(torch.tensor([0, 3], dtype=torch.int32), torch.tensor([1.0, 2.0]), (2, 2))
BAD = {
    "int64 indices": GOOD._replace(indices=GOOD.indices.long()),
    "two-dimensional indices": GOOD._replace(indices=GOOD.indices.view(1, 2)),
    "integer values": GOOD._replace(values=torch.tensor([1, 2])),
    "float64 values": GOOD._replace(values=GOOD.values.double()),
    "two-dimensional values": GOOD._replace(values=GOOD.values.view(1, 2)),
    "more indices than values": GOOD._replace(values=torch.ones(1)),
    "negative index": GOOD._replace(indices=torch.tensor([-1, 3], dtype=torch.int32)),
    "index beyond the end": GOOD._replace(indices=torch.tensor([0, 4], dtype=torch.int32)),
    "index beyond the end, hidden in the middle": SparseEntry(
        torch.tensor([0, 9, 3], dtype=torch.int32), torch.ones(3), (2, 2)
    ),
    "unsorted": GOOD._replace(indices=torch.tensor([3, 0], dtype=torch.int32)),
    "duplicated": GOOD._replace(indices=torch.tensor([3, 3], dtype=torch.int32)),
    "NaN": GOOD._replace(values=torch.tensor([1.0, math.nan])),
    "infinity": GOOD._replace(values=torch.tensor([1.0, -math.inf])),
    "empty side": SparseEntry(torch.zeros(0, dtype=torch.int32), torch.zeros(0), (0, 4)),
    "negative side": GOOD._replace(shape=(-2, -2)),
    "too many elements for int32": GOOD._replace(shape=(2**16, 2**15)),
    "too many dimensions": GOOD._replace(shape=(2,) * 9),
}


@pytest.mark.parametrize("what", BAD)
def test_unsafe_entries_are_refused_by_name(what):
    with pytest.raises(DeltaError, match="layer.weight"):
        SparseDelta({"layer.weight": BAD[what]})


def test_what_is_safe_is_accepted():
    largest = GOOD._replace(indices=torch.tensor([0, 2**31 - 2], dtype=torch.int32), shape=(2**31 - 1,))
    nothing = SparseEntry(torch.zeros(0, dtype=torch.int32), torch.zeros(0), (3,))
    scalar = SparseEntry(torch.zeros(1, dtype=torch.int32), torch.ones(1), ())
    assert SparseDelta({"a": GOOD, "b": largest, "c": nothing, "d": scalar}).nnz == 5


def test_metadata_must_be_text():
    with pytest.raises(DeltaError, match="text"):
        SparseDelta({}, {"steps": 3})


def test_density_counts_the_named_weights_only():
    delta = SparseDelta({"a": entry((10, 10), 5), "b": entry((50,), 10)})
    assert delta.nnz == 15 and delta.density == 0.1
    assert SparseDelta({}).density == 0


def test_sum_and_product_equal_dense_arithmetic():
    first = SparseDelta({"a": entry((8, 9), 30, 1), "b": entry((40,), 7, 2)}, {"base": "x", "title": "1"})
    second = SparseDelta({"a": entry((8, 9), 25, 3), "c": entry((5, 5), 5, 4)}, {"base": "x", "title": "2"})
    both = first * 0.6 + -0.4 * second
    assert set(both.entries) == {"a", "b", "c"} and both.metadata == {"base": "x"}
    expected = dense(first.entries["a"]) * 0.6 + dense(second.entries["a"]) * -0.4
    assert torch.equal(dense(both.entries["a"]), expected)
    support = set(first.entries["a"].indices.tolist()) | set(second.entries["a"].indices.tolist())
    assert both.entries["a"].indices.tolist() == sorted(support)
    assert torch.equal(dense(both.entries["c"]), dense(second.entries["c"]) * -0.4)


def test_sum_over_the_same_support_keeps_it():
    delta = SparseDelta({"a": entry((8, 9), 30)})
    twice = delta + delta
    assert torch.equal(twice.entries["a"].indices, delta.entries["a"].indices)
    assert torch.equal(twice.entries["a"].values, delta.entries["a"].values * 2)


def test_sum_is_in_float32_whatever_the_values_dtype():
    delta = SparseDelta({"a": entry((64,), 32, dtype=torch.bfloat16)})
    assert (delta + delta).entries["a"].values.dtype == (delta * 2).entries["a"].values.dtype == torch.float32


def test_sum_refuses_different_shapes_and_product_refuses_overflow():
    with pytest.raises(DeltaError, match=r"\[4, 4\].*\[16\]"):
        SparseDelta({"a": entry((4, 4), 3)}) + SparseDelta({"a": entry((16,), 3)})
    for factor in (math.inf, math.nan, 1e308):
        with pytest.raises(DeltaError, match="factor of a delta is .* number that float32 can hold"):
            SparseDelta({"a": entry((4, 4), 3)}) * factor
    large = SparseDelta({"a": SparseEntry(torch.tensor([0], dtype=torch.int32), torch.tensor([3e38]), (4, 4))})
    with pytest.raises(DeltaError, match="'a' come out larger than float32"):
        large + large
    with pytest.raises(DeltaError, match="'a' come out larger than float32"):
        large * 2


def test_overlap():
    first = SparseDelta({"a": SparseEntry(torch.arange(4, dtype=torch.int32), torch.ones(4), (9,))})
    second = SparseDelta({"a": SparseEntry(torch.arange(2, 8, dtype=torch.int32), torch.ones(6), (9,))})
    assert first.overlap(second) == second.overlap(first) == 2 / 8
    assert first.overlap(first) == 1 and first.overlap(SparseDelta({})) == 0


def model(dtype=torch.float32):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.Linear(9, 7), torch.nn.LayerNorm(7))
    return layers.to(dtype).to(memory_format=torch.channels_last)


def delta_for(target, seed=0, share=0.3):
    weights = target.state_dict() if isinstance(target, torch.nn.Module) else target
    return SparseDelta(
        {
            name: entry(weight.shape, max(1, int(weight.numel() * share)), seed + place)
            for place, (name, weight) in enumerate(weights.items())
        }
    )


def snapshot(target):
    return {name: bits(weight).clone() for name, weight in target.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_is_exact_and_remove_restores_every_bit(dtype):
    target = model(dtype)
    before, copies = snapshot(target), {name: weight.clone() for name, weight in target.state_dict().items()}
    delta = delta_for(target)
    handle = delta.apply_(target, 0.8)
    for name, weight in target.state_dict().items():
        change = delta.entries[name]
        on_support = dense(change._replace(values=torch.ones(len(change.values)))) == 1
        exact = (copies[name].float() + dense(change) * 0.8).to(dtype)
        assert torch.equal(bits(weight), bits(torch.where(on_support, exact, copies[name])))
    handle.remove()
    assert same(snapshot(target), before)
    handle.remove()
    assert same(snapshot(target), before)


def test_apply_keeps_the_sign_of_zero_outside_the_support():
    weights = {"a": torch.full((4,), -0.0)}
    SparseDelta({"a": SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (4,))}).apply_(weights)
    assert torch.signbit(weights["a"]).tolist() == [True, False, True, True]


def test_strength_zero_writes_nothing():
    target = model()
    versions = {name: weight._version for name, weight in target.state_dict(keep_vars=True).items()}
    delta_for(target).apply_(target, 0).remove()
    assert {name: weight._version for name, weight in target.state_dict(keep_vars=True).items()} == versions


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_strength_must_be_finite(strength):
    with pytest.raises(DeltaError, match="finite"):
        delta_for(model()).apply_(model(), strength)


def test_handles_are_removed_last_in_first_out():
    target = model()
    before = snapshot(target)
    first = delta_for(target, 1).apply_(target)
    second = delta_for(target, 2).apply_(target)
    changed = snapshot(target)
    with pytest.raises(DeltaError, match="later one first"):
        first.remove()
    assert same(snapshot(target), changed)
    second.remove()
    first.remove()
    assert same(snapshot(target), before)


def test_handles_of_different_models_do_not_disturb_each_other():
    target, other = model(), model()
    handle, _ = delta_for(target).apply_(target), delta_for(other).apply_(other)
    handle.remove()


def test_remove_after_the_model_was_moved_to_another_dtype():
    target = model()
    expected = snapshot(model().half())
    handle = delta_for(target).apply_(target)
    target.half()
    handle.remove()
    assert same(snapshot(target), expected)


@pytest.mark.parametrize(
    "spoil, error, words",
    [
        (lambda w: w.pop("2.bias"), DeltaError, "1 of the delta's 6 weights.*2.bias"),
        (lambda w: w.clear(), DeltaError, "None of the delta's 6 weights"),
        (lambda w: w.update({"1.weight": torch.zeros(9, 7)}), DeltaError, r"1.weight.*\[9, 7\].*\[7, 9\]"),
        (lambda w: w.update({"1.weight": torch.zeros(7, 9).to(torch.float8_e4m3fn)}), UnsupportedModelError, "float8"),
        (lambda w: w.update({"1.weight": torch.zeros(7, 9, dtype=torch.int8)}), UnsupportedModelError, "int8"),
        (lambda w: w.update({"1.weight": torch.zeros(7, 9, device="meta")}), UnsupportedModelError, "not in memory"),
        (lambda w: w.update({"1.weight": torch.zeros(7, 9).to_sparse()}), UnsupportedModelError, "not in memory"),
    ],
    ids=["missing", "all missing", "shape", "float8", "integer", "meta", "sparse"],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(spoil, error, words):
    weights = {name: weight.clone() for name, weight in model().state_dict().items()}
    delta = delta_for(weights)
    spoil(weights)
    before = {name: weight.clone() for name, weight in weights.items()}
    with pytest.raises(error, match=words):
        delta.apply_(weights)
    for name, weight in weights.items():
        if weight.layout == torch.strided and not weight.is_meta:
            assert torch.equal(weight.float(), before[name].float())


def test_quantised_tensor_classes_are_refused():
    class Quantised(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function, types, arguments=(), options=None):
            raise NotImplementedError

    weight = torch.Tensor._make_wrapper_subclass(Quantised, (7, 9), dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match="1.weight.*Quantised"):
        SparseDelta({"1.weight": entry((7, 9), 5)}).apply_({"1.weight": weight})


def test_a_failure_while_writing_undoes_what_was_written(monkeypatch):
    target = model()
    before, write, calls = snapshot(target), InPlaceChange.write, []

    def failing(change, strength):
        write(change, strength)
        calls.append(change)
        if len(calls) == 4:
            raise MemoryError

    monkeypatch.setattr(InPlaceChange, "write", failing)
    with pytest.raises(MemoryError):
        delta_for(target).apply_(target)
    assert len(calls) == 4 and same(snapshot(target), before)


def test_a_tied_weight_is_changed_once():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight

    target = Tied()
    change = entry((5, 4), 6)
    expected = target.out.weight.detach() + dense(change)
    SparseDelta({"embed.weight": change, "out.weight": change}).apply_(target)
    assert torch.equal(target.out.weight, expected)
    with pytest.raises(DeltaError, match="one weight in this model"):
        SparseDelta({"embed.weight": change, "out.weight": entry((5, 4), 6, 9)}).apply_(target)


def test_a_transposed_view_is_another_weight_over_the_same_memory():
    whole = torch.arange(16.0).view(4, 4)
    weights, before = {"a": whole, "b": whole.t()}, whole.clone()
    entries = {name: SparseEntry(torch.tensor([1, 6], dtype=torch.int32), torch.ones(2), (4, 4)) for name in weights}
    handle = SparseDelta(entries).apply_(weights)
    change = dense(entries["a"])
    assert torch.equal(whole, before + change + change.t())
    handle.remove()
    assert torch.equal(whole, before)


def test_weights_that_share_memory_in_part_come_back_too():
    whole = torch.arange(12.0)
    weights = {"a": whole[:8], "b": whole[4:]}
    SparseDelta({name: entry((8,), 8, place) for place, name in enumerate(weights)}).apply_(weights).remove()
    assert torch.equal(whole, torch.arange(12.0))


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("target_prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_prefixes_of_the_diffusion_model_are_exchanged(prefix, target_prefix):
    change = entry((4, 4), 5)
    weights = {f"{target_prefix}out.weight": torch.zeros(4, 4)}
    SparseDelta({f"{prefix}out.weight": change}).apply_(weights)
    assert torch.equal(weights[f"{target_prefix}out.weight"], dense(change))


def test_a_weight_is_never_taken_for_another_one_of_a_different_prefix():
    # One prefix holds for the whole delta: half of it under one name and half under another is another model.
    weights = {"diffusion_model.a.weight": torch.zeros(4), "model.diffusion_model.b.weight": torch.zeros(4)}
    delta = SparseDelta({f"diffusion_model.{name}.weight": entry((4,), 2) for name in "ab"})
    with pytest.raises(DeltaError, match="diffusion_model.b.weight"):
        delta.apply_(weights)
