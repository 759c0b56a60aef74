"""A change put in the place of another in one walk: the bits of taking off, keeping and writing one after the other."""

import pytest
import torch

from sara_core.tensors import elements, replacing
from sara_core.tensors.elements import add_sparse_, gather, overwrite_, scatter_, writer_of
from sara_core.tensors.replacing import replace_


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(elements, "CACHED", 32)


def change(count: int, numel: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(numel, generator=generator)[:count].sort().values.to(torch.int32)
    return indices, torch.randn(count, generator=generator)


def weight(dtype=torch.float32, layout=torch.contiguous_format) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 5, 3, 3, generator=generator).to(dtype).to(memory_format=layout)


@pytest.mark.parametrize("counts", [(200, 90), (90, 200), (0, 40), (40, 0), (0, 0), (270, 270)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_one_change_takes_the_place_of_another_with_the_bits_of_doing_it_in_turn(dtype, layout, counts):
    plain = weight(dtype, layout)
    (first, before), (second, after) = (change(count, plain.numel(), seed) for seed, count in enumerate(counts))
    live = plain.clone()
    kept = replace_(live, first, before, 0.7)
    assert torch.equal(kept, gather(plain, first))
    assert torch.equal(live, add_sparse_(plain.clone(), first, before, 0.7))
    base = replace_(live, second, after, -1.3, (first, kept))
    assert torch.equal(base, gather(plain, second)) and base.dtype == dtype
    assert torch.equal(live, overwrite_(plain.clone(), second, base, after, -1.3))
    assert live.stride() == plain.stride()
    assert torch.equal(scatter_(live, second, base), plain)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_inference_tensors_and_others_are_written_inside_inference_mode_and_outside(inference, outside):
    with torch.inference_mode(inference):
        live = weight().clone()
    indices, values = change(100, live.numel(), 1)
    with torch.inference_mode(outside):
        kept = replace_(live, indices, values, 1.0)
        replace_(live, indices, values, 2.0, (indices, kept))
    assert torch.equal(live, add_sparse_(weight(), indices, values, 2.0))


@pytest.mark.parametrize("calls", range(1, 10, 2))
def test_what_is_interrupted_leaves_nothing_of_the_new_change(monkeypatch, calls):
    plain, written = weight(), []
    (first, before), (second, after) = change(100, plain.numel(), 1), change(150, plain.numel(), 2)
    live = plain.clone()
    kept = replace_(live, first, before, 1.0)

    def stopping_writer(memory):
        write = writer_of(memory)

        def stopped(*given):
            written.append(given)
            if len(written) == calls:
                raise KeyboardInterrupt
            write(*given)

        return stopped

    monkeypatch.setattr(replacing, "writer_of", stopping_writer)
    with pytest.raises(KeyboardInterrupt):
        replace_(live, second, after, 1.0, (first, kept))
    assert torch.equal(scatter_(live, first, kept), plain)


@pytest.mark.parametrize("write", [replace_, lambda w, i, v, s: overwrite_(w, i, gather(w, i), v, s)])
def test_autograd_learns_of_a_change(write):
    live = weight().requires_grad_()
    loss = (live**2).sum()
    write(live, *change(10, live.numel(), 1), 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
