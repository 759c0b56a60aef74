"""One matrix's low-rank loss: its gradient against a dense SVD, the cut-off, and memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sara_core.backward.support import Segment, Support
from sara_core.training import low_rank
from sara_core.training.low_rank import nuclear_norm_gradient
from tests.support.small_models import counted_memory, relative_error, repeatable

TOLERANCE = 1e-6
SHAPES = {
    "wide": (12, 30),
    "tall": (30, 12),
    "square": (16, 16),
    "convolution": (10, 4, 3, 3),
    "tall convolution": (40, 2, 3, 3),
    "1-d convolution": (9, 5, 3),
    "3-d convolution": (6, 3, 2, 3, 2),
}


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def segment_of(mask: torch.Tensor) -> Segment:
    """The true elements of a bool tensor of a weight's shape."""
    indices = mask.reshape(-1).nonzero().flatten().to(torch.int32)
    segment, = Support.from_indices({"weight": indices}, {"weight": mask.shape})
    return segment


def dense(segment: Segment, values: torch.Tensor) -> torch.Tensor:
    """P_M in full, fp64."""
    matrix = torch.zeros(segment.rows * segment.columns, dtype=torch.float64)
    matrix[segment.flat()] = values.double()
    return matrix.view(segment.rows, segment.columns)


def by_autograd(segment: Segment, values: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The nuclear norm and its gradient at the support, through a dense SVD in fp64."""
    matrix = dense(segment, values).requires_grad_()
    norm = torch.linalg.svdvals(matrix).sum()
    norm.backward()
    return norm.item(), matrix.grad.view(-1)[segment.flat()]


def by_truncation(segment: Segment, values: torch.Tensor) -> torch.Tensor:
    """U Vᵀ at the support without vanishing singular values, through a dense SVD in fp64."""
    u, s, vh = torch.linalg.svd(dense(segment, values), full_matrices=False)
    rank = int((s > low_rank.VANISHING * s[0]).sum())
    return (u[:, :rank] @ vh[:rank]).reshape(-1)[segment.flat()]


@pytest.mark.parametrize("density", [1.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_gradient_of_a_full_rank_matrix_is_that_of_autograd_through_a_dense_svd(shape, density):
    segment = segment_of(torch.rand(shape) < density)
    values = torch.randn(len(segment))
    assert torch.linalg.matrix_rank(dense(segment, values)) == min(segment.rows, segment.columns)
    norm, gradient = nuclear_norm_gradient(segment, values)
    expected_norm, expected = by_autograd(segment, values)
    assert gradient.dtype == torch.float32 and gradient.shape == values.shape
    assert norm == pytest.approx(expected_norm, rel=TOLERANCE)
    assert relative_error(gradient, expected) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_empty_rows_and_columns_change_nothing(shape):
    mask = torch.rand(shape) < 0.8
    mask[[0, 2, -1]] = False
    mask.view(shape[0], -1)[:, [1, -1]] = False
    segment = segment_of(mask)
    values = torch.randn(len(segment))
    norm, gradient = nuclear_norm_gradient(segment, values)
    expected_norm, expected = by_autograd(segment, values)
    assert norm == pytest.approx(expected_norm, rel=TOLERANCE)
    assert relative_error(gradient, expected) < TOLERANCE


def test_a_large_sparse_matrix_agrees_with_a_dense_svd():
    """Near-square at a low density is the worst case: many singular values, the smallest ones all but vanishing."""
    segment = segment_of(torch.rand(300, 320) < 0.02)
    values = torch.randn(len(segment)) * 1e-3
    _, gradient = nuclear_norm_gradient(segment, values)
    assert relative_error(gradient, by_truncation(segment, values)) < TOLERANCE


@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-5])
def test_singular_values_far_below_the_largest_are_resolved(smallest):
    left, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(60, 24, dtype=torch.float64))
    matrix = (left * torch.logspace(0, torch.tensor(smallest).log10().item(), 24, dtype=torch.float64)) @ right.t()
    segment = segment_of(torch.ones(24, 60, dtype=torch.bool))
    values = matrix.float().reshape(-1)
    _, gradient = nuclear_norm_gradient(segment, values)
    assert relative_error(gradient, by_autograd(segment, values)[1]) < 1e-4


@pytest.mark.parametrize("smallest, counts", [(1.3e-6, 1.0), (0.8e-6, 0.0)])
def test_what_vanishes_is_a_millionth_of_the_largest(smallest, counts):
    """Of a diagonal matrix, whose singular values are its elements to the last bit."""
    segment, values = segment_of(torch.eye(3, dtype=torch.bool)), torch.tensor([1.0, 0.5, smallest])
    _, gradient = nuclear_norm_gradient(segment, values)
    assert gradient.tolist() == pytest.approx([1.0, 1.0, counts])


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_vanishing_singular_values_are_cut_off(shape):
    """Exactly low rank but for the rounding to fp32, whose directions would be as good as random."""
    matrix = torch.randn(shape[0], 3, dtype=torch.float64) @ torch.randn(3, shape[1], dtype=torch.float64)
    segment, values = segment_of(torch.ones(shape, dtype=torch.bool)), matrix.float().reshape(-1)
    norm, gradient = nuclear_norm_gradient(segment, values)
    assert relative_error(gradient, by_truncation(segment, matrix.reshape(-1))) < TOLERANCE
    lengths = torch.linalg.svdvals(gradient.view(shape))
    assert int((lengths > 0.5).sum()) == 3
    # What makes it a subgradient: no direction longer than 1, and all of the norm along P.
    assert lengths[0] < 1 + TOLERANCE
    assert float(gradient @ values) == pytest.approx(norm, rel=1e-5)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_the_support_and_the_rank_it_is_the_truncated_dense_one(data):
    rows, columns = data.draw(st.integers(2, 7)), data.draw(st.integers(2, 7))
    elements = st.integers(-3, 3)  # singular values of small whole numbers are 0 or far from it
    matrix = torch.tensor(data.draw(st.lists(elements, min_size=rows * columns, max_size=rows * columns)))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    segment = segment_of(mask.view(rows, columns))
    values = matrix[mask].float()
    norm, gradient = nuclear_norm_gradient(segment, values)
    assert torch.allclose(gradient.double(), by_truncation(segment, values), atol=1e-6)
    assert norm == pytest.approx(float(torch.linalg.svdvals(dense(segment, values)).sum()), abs=1e-6)


def test_a_matrix_of_zeros_has_no_gradient():
    segment = segment_of(torch.ones(4, 5, dtype=torch.bool))
    norm, gradient = nuclear_norm_gradient(segment, torch.zeros(20))
    assert norm == 0 and torch.equal(gradient, torch.zeros(20))


@pytest.mark.parametrize("shape", [(64, 16384), (16384, 64), (64, 1024, 4, 4)])
def test_memory_follows_the_elements_and_the_shorter_side_not_the_weight(shape):
    """At 0.6 %: at most 50 bytes per element, 16 per row and column, and six matrices over the shorter side, fp64.

    Blocks of pairs of elements come on top in larger ones: 3 MiB, whatever the size.
    """
    segment = segment_of(torch.rand(shape) < 0.006)
    values = torch.randn(len(segment))
    nuclear_norm_gradient(segment, values)
    shorter = min(segment.rows, segment.columns)
    with counted_memory() as memory:
        nuclear_norm_gradient(segment, values)
    bound = 50 * len(segment) + 16 * (segment.rows + segment.columns) + 6 * 8 * shorter**2
    assert memory.peak < bound < torch.Size(shape).numel()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_gradient_is_the_same_and_repeats_bit_for_bit():
    segment = segment_of(torch.rand(96, 160) < 0.3)
    values = torch.randn(len(segment))
    _, expected = nuclear_norm_gradient(segment, values)
    _, gradient = nuclear_norm_gradient(segment.to("cuda"), values.cuda())
    _, again = nuclear_norm_gradient(segment.to("cuda"), values.cuda())
    assert gradient.is_cuda and torch.equal(gradient, again)
    assert relative_error(gradient.cpu(), expected) < TOLERANCE
