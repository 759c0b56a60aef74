"""Several changes of one weight: one rounding, every bit back, and the base to be read meanwhile."""

import pytest
import torch

from sara_core.delta.in_place_sum import InPlaceSum
from sara_core.tensors import replacing
from sara_core.tensors.elements import add_sparse_

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def change(shape, count, seed):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(shape.numel(), generator=generator)[:count].sort().values.to(torch.int32)
    return indices, torch.randn(count, generator=generator)


@pytest.fixture(params=[(dtype, layout) for dtype in DTYPES for layout in LAYOUTS], ids=str)
def weight(request):
    dtype, layout = request.param
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, 5, 3, 3, generator=generator).to(dtype).to(memory_format=layout)


@pytest.mark.parametrize("inference", [False, True])
def test_a_sum_is_rounded_once_and_taken_off_to_the_last_bit(weight, inference):
    with torch.inference_mode(inference):
        live = weight.clone()
    parts = [change(weight.shape, count, seed) for seed, count in enumerate((40, 90, 1))]
    written = InPlaceSum(live, [indices for indices, _ in parts])
    for strengths in ((0.3, -1.5, 1.0), (0.0, 2.0, 0.1), (0.0, 0.0, 0.0)):
        written.write([(values, strength) for (_, values), strength in zip(parts, strengths)])
        expected = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for (indices, values), strength in zip(parts, strengths):
            add_sparse_(expected, indices, values, strength)
        assert torch.equal(live, expected.to(weight.dtype))
    written.write([(values, 1.0) for _, values in parts])
    written.restore()
    assert torch.equal(live, weight) and live.is_inference() == inference


def test_the_base_is_read_as_a_copy_and_by_elements_while_a_sum_is_on(weight):
    live = weight.clone()
    parts = [change(weight.shape, 120, seed) for seed in (1, 2)]
    written = InPlaceSum(live, [indices for indices, _ in parts])
    written.write([(values, 1.0) for _, values in parts])
    changed = live.clone()
    copy = written.base_copy(torch.device("cpu"))
    assert torch.equal(copy, weight) and copy.stride() == weight.stride()
    for start in range(0, weight.numel(), 7):
        assert torch.equal(written.base_elements(start, 7), weight.flatten()[start : start + 7])
    assert torch.equal(live, changed) and not torch.equal(changed, weight)


def test_negative_zeros_stay_where_a_change_is_zero():
    live = torch.full((4,), -0.0)
    indices = torch.tensor([0, 1], dtype=torch.int32)
    written = InPlaceSum(live, [indices, indices])
    written.write([(torch.zeros(2), 1.0), (torch.tensor([0.0, 1.0]), -0.0)])
    assert torch.signbit(live).all()


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 2), (2, 2), (1, 0)], ids=str)
def test_changes_take_the_place_of_others_as_if_those_had_never_been(weight, counts):
    live, others = weight.clone(), weight.clone()
    first, second = ([(*change(weight.shape, 90, 10 * side + n), 0.7) for n in range(many)]
                     for side, many in enumerate(counts))  # fmt: skip
    before = InPlaceSum.put_on(live, first)
    after = InPlaceSum.put_on(live, second, instead_of=before)
    alone = InPlaceSum(others, [indices for indices, _, _ in second])
    alone.write([(values, strength) for _, values, strength in second])
    assert torch.equal(live, others)
    assert all(map(torch.equal, after.base, alone.base))
    after.restore()
    assert torch.equal(live, weight)


@pytest.mark.parametrize("many", [1, 2])
def test_what_was_on_before_can_still_be_taken_off_where_putting_on_is_interrupted(weight, monkeypatch, many):
    live = weight.clone()
    before = InPlaceSum.put_on(live, [(*change(weight.shape, 90, 1), 1.0)])

    def after_the_last(self, changes):
        written(self, changes)
        raise KeyboardInterrupt

    def before_the_first(*given):
        raise KeyboardInterrupt

    written = InPlaceSum.write
    monkeypatch.setattr(InPlaceSum, "write", after_the_last)
    monkeypatch.setattr(replacing, "added", before_the_first)
    with pytest.raises(KeyboardInterrupt):
        InPlaceSum.put_on(live, [(*change(weight.shape, 60, 2 + n), 1.0) for n in range(many)], instead_of=before)
    before.restore()
    assert torch.equal(live, weight)
