"""How two models differ, element by element, and what beside the diffusion model does."""

import pytest
import torch

from sara_core.errors import DeltaError, UnsupportedModelError
from sara_core.models import comparison
from sara_core.models.comparison import Comparison, ModelWeights, _same_bytes, rounded_alike

ONES = torch.ones(4)


@pytest.mark.parametrize("other, same", [
    (torch.ones(4), True), (torch.tensor([1.0, 1.0, 1.0, 2.0]), False), (torch.tensor([1.0, 1.0, 1.0, -0.0]), False),
    (ONES.view(torch.int32), False), (torch.ones(2, 2), False),
])  # fmt: skip
def test_equal_bytes_of_another_dtype_or_shape_are_no_equal_tensor(other, same):
    assert _same_bytes(ONES, other) is same


HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("fine, coarse", [(1.0, 1.0), (-300.0, -300.0), (2**-20, 2**-20), (0.0, 0.0)])
def test_one_number_rounded_to_each_half_precision_is_alike(fine, coarse):
    one, other = torch.tensor([fine], dtype=torch.float16), torch.tensor([coarse], dtype=torch.bfloat16)
    assert rounded_alike(one, other).all() and rounded_alike(other, one).all()


def test_any_number_may_have_been_rounded_to_both_half_precisions_and_no_other():
    """They lie apart by at most half a step of each: 2^-11 and 2^-8 of numbers from 1 to 2."""
    numbers = 1 + torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert rounded_alike(*(numbers.to(dtype) for dtype in HALVES)).all()
    coarse = torch.tensor([1.5], dtype=torch.bfloat16)
    fine = (1.5 + torch.tensor([4.0, -4.0, 5.0, -5.0]) * 2**-10).half()  # half a step of 8, and half a step of 1
    assert rounded_alike(fine, coarse.expand(4)).tolist() == [True, True, False, False]


def of(**tensors):
    return ModelWeights("one.safetensors", list(tensors), "", tensors.__getitem__)


def test_chunks_are_all_elements_once_and_their_differences(monkeypatch):
    monkeypatch.setattr(comparison, "CHUNK", 5)
    base, tuned = torch.arange(12.0).view(3, 4), torch.arange(12.0).view(3, 4) * 2
    pairs = Comparison(of(a=base), of(a=tuned))
    chunks = list(pairs.chunks())
    assert {chunk.name for chunk in chunks} == {"a"}
    assert [(chunk.start, len(chunk.change)) for chunk in chunks] == [(0, 5), (5, 5), (10, 2)]
    assert torch.equal(torch.cat([chunk.change for chunk in chunks]), torch.arange(12.0))
    assert chunks[0].shape == (3, 4) and pairs.elements == 12 and pairs.rounded == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_differences_of_half_precision_weights_are_formed_in_single(dtype):
    """Of 1 and 2^-12 no half precision holds the sum."""
    chunk, = Comparison(of(a=torch.ones(2, dtype=dtype)), of(a=torch.full((2,), -(2.0**-12), dtype=dtype))).chunks()
    assert chunk.change.dtype == torch.float32 and chunk.change.tolist() == [-1 - 2.0**-12] * 2


def test_what_only_storage_has_rounded_is_counted_and_no_difference():
    base = torch.tensor([1.0 + 2**-12, 1.0, 3.0])
    pairs = Comparison(of(a=base), of(a=torch.tensor([1.0, 1.0, 4.0], dtype=torch.float16)))
    chunk, = pairs.chunks()
    assert chunk.change.tolist() == [0, 0, 1] and pairs.rounded == 1


def test_what_one_model_has_alone_is_said_and_layers_may_not_be_missing():
    one, other = of(**{"a.weight": ONES, "counter": ONES}), of(**{"a.weight": ONES, "b.weight": ONES, "b.bias": ONES})
    assert Comparison(one, of(**{"a.weight": ONES})).remarks() == [
        "Not compared, because only 'one.safetensors' has them: counter."
    ]
    with pytest.raises(DeltaError, match="lacks 2 weights of the other model .b.bias, b.weight."):
        Comparison(one, other)
    with pytest.raises(DeltaError, match="lacks 2 weights of the other model"):
        Comparison(other, one)
    with pytest.raises(DeltaError, match="no weight of a diffusion model in common"):
        Comparison(one, of(other=ONES))


def test_whole_numbers_and_empty_weights_take_no_part_unless_they_differ():
    numbers = torch.arange(4)
    pairs = Comparison(of(a=ONES, n=numbers, e=torch.ones(0)), of(a=ONES, n=numbers.clone(), e=torch.ones(0)))
    assert [pair.name for pair in pairs.pairs] == ["a"]
    with pytest.raises(UnsupportedModelError, match="'n' is stored as whole numbers"):
        Comparison(of(a=ONES, n=numbers), of(a=ONES, n=numbers + 1))
    with pytest.raises(UnsupportedModelError):
        Comparison(of(a=ONES), of(a=ONES.to(torch.int32)))
    with pytest.raises(UnsupportedModelError):
        Comparison(of(a=ONES.to(torch.int32)), of(a=ONES))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_base", [True, False])
def test_a_weight_that_is_no_number_is_refused_by_name(bad, is_base):
    pair = [of(a=ONES), of(a=torch.tensor([1.0, bad, 1.0, 1.0]))]
    with pytest.raises(DeltaError, match="'a' has values that are NaN or infinite"):
        list(Comparison(*(reversed(pair) if is_base else pair)).chunks())


def test_other_parts_of_two_checkpoints_are_counted_by_their_first_word():
    def model(text, other):
        others = {"vae.a": ONES, "text.a": text, "text.b": ONES, **other}
        return ModelWeights("m", ["a"], "", {"a": ONES}.__getitem__, {n: (lambda t=t: t) for n, t in others.items()})

    pairs = Comparison(model(ONES, {"only.here": ONES}), model(ONES * 2, {}))
    assert pairs.other_parts() == {"text": (1, 2), "vae": (0, 1)}


def test_differences_and_steps_are_single_precision_whatever_they_are_of():
    chunk, = Comparison(of(a=torch.ones(2).double()), of(a=torch.zeros(2).double())).chunks()
    assert chunk.change.dtype == torch.float32
    for dtype in HALVES:
        numbers = torch.tensor([1.0, 1.5, 2.0, 1000.0, 2**-14, 0.0], dtype=dtype)
        exact = torch.tensor([1.0, 1.0, 2.0, 512.0]) * torch.finfo(dtype).eps
        step = comparison._step(numbers)
        assert step.dtype == torch.float32 and torch.equal(step[:4], exact)
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert step[5] == smallest and step[4] == max(2.0**-14 * torch.finfo(dtype).eps, smallest)
