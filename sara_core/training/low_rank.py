"""The paper's low-rank loss (equations 4 and 5): λ · Σ ‖P_M‖_*, and its gradient for the trained vector.

P_M is a weight's matrix (shape[0] × rest) with the trained values at the support and 0 elsewhere. With its singular
value decomposition U S Vᵀ the gradient of the nuclear norm is U Vᵀ = (P Pᵀ)^(-1/2) P, needed at the support only.

Exact, and sparse: rows and columns without an element take no part. Of the rest every line along the longer side holds
few elements, and only elements of one line meet: in the Gram matrix of the shorter side and again in
(P Pᵀ)^(-1/2) P. What is left to pay is one eigendecomposition of the shorter side, so each step computes only a few
matrices, drawn at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..backward.store import Store
from ..backward.support import Segment, Support
from ..errors import TrainingError
from ..files.saved_state import fields, generator_state
from ..numbers import checked

# Singular values below this share of the largest are noise, and their directions arbitrary: rounding the elements to
# fp32 moves them by about 1e-7 of the largest. A Gram matrix squares them: in fp32 it would bury everything below
# 1e-3, in fp64 it resolves 1e-7.
VANISHING = 1e-6
# Products of pairs of elements that exist at a time: 1 MiB in fp64.
PAIRS_AT_A_TIME = 1 << 17
# Cost of one such product, in units of (shorter side)³ of an eigendecomposition; see `python dev.py bench low_rank`.
PAIR_COST = 50
# What a step may spend per element of the model's trained weights and per sample, in the same units; not in seconds, so
# that the draws repeat. Measured on one core this is 3.7 % of the fastest step on two, 3.5 s: SD1.5 at 32×32 latents
# without checkpointing. On other devices, not measured, steps are so much faster, and eigendecompositions so little,
# that a tenth is assumed.
BUDGET = {"cpu": 0.7}
BUDGET_ELSEWHERE = 0.07
# Devices that have fp64 and eigendecompositions; what lies on others is computed on the CPU.
LINEAR_ALGEBRA_DEVICES = ("cpu", "cuda")


class LowRankLoss:
    """Adds the gradient of λ · Σ ‖P_M‖_* over the matrices of a store to the gradient of its vector.

    store: its segments with at least two rows and columns count, as they are at each call
    weight: λ; 0 = off. Whatever the values, the gradient's 2-norm over all matrices is at most, and nearly,
        λ · √(sum of their ranks): 470 λ for SD1.5. A λ above the largest singular value of the data's gradient for a
        matrix takes that matrix to 0, where no rank is left to lower.
    seed: of the draws. The same seed and values give the same gradient, bit for bit on the same machine.
    samples_per_step: latents per optimizer step, batch × accumulation; the budget grows with them

    Each call draws every matrix i independently with a probability p_i and counts its gradient 1/p_i-fold, so the
    expectation is the gradient of the full sum. A matrix's gradient has a squared norm near its rank r_i; the variance
    Σ r_i (1/p_i - 1) is smallest for a given expected cost Σ p_i c_i at p_i ∝ √(r_i / c_i) (Neyman allocation). Models
    small enough for the budget have p_i = 1, no variance; for SD1.5 on the CPU 1/p_i is 120 to 480 at 5 M elements. An
    optimizer that divides by the root mean square of the gradient, like Adam, then sees (λ ∇)²/p_i where the full sum
    would give (λ ∇)². While that is small beside the square of the data's gradient, the effect is the full sum's;
    beyond, everything learns more slowly and a larger λ adds less and less.

    Raises TrainingError for a weight that is negative or not finite.
    """

    def __init__(self, store: Store, weight: float, seed: int, samples_per_step: int = 1):
        weight = checked(weight, "The low-rank weight", 0, error=TrainingError)
        self.store = store
        self.weight = weight
        self.samples_per_step = samples_per_step
        # On the CPU, whose numbers are the same for every device the store may be on.
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def add_gradient(self) -> float:
        """Add an unbiased estimate of λ · ∂/∂Δ Σ ‖P_M‖_* to `store.values.grad`; returns that of the loss itself.

        Call it once per optimizer step: after backward (and after GradScaler.unscale_), before gradient clipping.
        """
        if self.weight == 0:
            return 0.0
        values = self.store.values
        if values.grad is None:
            values.grad = torch.zeros_like(values)
        probabilities = self.probabilities()
        loss = 0.0
        for number in self.draw(probabilities):
            segment = self.store.support.segments[number]
            norm, gradient = nuclear_norm_gradient(segment, self.store.trained_values(number))
            counted = self.weight / float(probabilities[number])
            values.grad[segment.span].add_(gradient, alpha=counted)
            loss += counted * norm
        return loss

    def probabilities(self) -> torch.Tensor:
        """With which each segment's matrix is drawn: fp64 [segments]; 0 for what is no matrix."""
        budget = BUDGET.get(self.store.values.device.type, BUDGET_ELSEWHERE) * self.samples_per_step
        return drawing_probabilities(self.store.support, budget)

    def draw(self, probabilities: torch.Tensor) -> list[int]:
        """The numbers of the segments that this step computes."""
        drawn = torch.rand(len(probabilities), generator=self.generator, dtype=torch.float64) < probabilities
        return drawn.nonzero().flatten().tolist()

    def state(self) -> dict:
        """What an exact continuation needs beside the store's state: the generator's, uint8."""
        return {"generator": self.generator.get_state()}

    def check_state(self, state: dict) -> None:
        """Raises DeltaError for anything that `state()` cannot have given."""
        fields(state, "the low-rank loss", ("generator",))
        generator_state(state["generator"], "the state of the low-rank loss's random generator")

    def load_state(self, state: dict) -> None:
        """Continue the draws where `state` was taken. Raises what `check_state` raises."""
        self.check_state(state)
        self.generator.set_state(state["generator"].cpu())


def drawing_probabilities(support: Support, budget: float) -> torch.Tensor:
    """Probabilities of least variance whose expected cost is at most `budget` per element of the weights: fp64
    [segments]."""
    probabilities = torch.zeros(len(support), dtype=torch.float64)
    matrices = [number for number, segment in enumerate(support) if is_matrix(segment)]
    segments = [support.segments[number] for number in matrices]
    rank = torch.tensor([largest_rank(segment) for segment in segments], dtype=torch.float64)
    cost = torch.tensor([expected_cost(segment) for segment in segments], dtype=torch.float64)
    left = budget * sum(segment.rows * segment.columns for segment in support)
    certain = torch.zeros(len(matrices), dtype=torch.bool)
    while not certain.all():
        scale = (left - cost[certain].sum()) / (rank * cost)[~certain].sqrt().sum()
        best = (scale * (rank / cost).sqrt()).masked_fill_(certain, 1.0)
        beyond = (best >= 1) & ~certain
        if not beyond.any():
            probabilities[matrices] = best
            return probabilities
        certain |= beyond
    probabilities[matrices] = 1.0
    return probabilities


def is_matrix(segment: Segment) -> bool:
    """Whether a segment has a nuclear norm: at least two rows and columns, and an element."""
    return min(segment.rows, segment.columns) > 1 and len(segment) > 0


def largest_rank(segment: Segment) -> int:
    """The most singular values P_M can have that are not 0."""
    return min(segment.rows, segment.columns, len(segment))


def expected_cost(segment: Segment) -> float:
    """What its gradient costs if its elements are evenly spread, in units of (shorter side)³."""
    elements = len(segment)
    lines = min(max(segment.rows, segment.columns), elements)
    pairs = elements * (elements / lines + 1)  # the mean square of a Poisson count m is m² + m
    return largest_rank(segment) ** 3 + PAIR_COST * pairs


@torch.no_grad()
def nuclear_norm_gradient(segment: Segment, values: torch.Tensor) -> tuple[float, torch.Tensor]:
    """‖P‖_* of one matrix and U Vᵀ at its elements, fp32 [n] on the device of `values`.

    values: P at the segment's elements, fp32 [n]

    Singular values below VANISHING times the largest are left out of both: a subgradient, where there is no gradient.
    """
    lines = _Lines.of(segment, values)
    eigenvalues, vectors = torch.linalg.eigh(lines.gram())
    kept = eigenvalues > VANISHING**2 * eigenvalues[-1:]
    singular, vectors = eigenvalues[kept].sqrt(), vectors[:, kept]
    gradient = lines.product((vectors / singular) @ vectors.t())
    return float(singular.sum()), gradient.float().to(values.device)


@dataclass
class _Lines:
    """P without its empty rows and columns, as lines along the longer side, those of equal length side by side.

    shorter: size of the shorter side
    order: int64 [n], which element of the segment stands where
    position: int64 [n], place of each element on the shorter side; values: fp64 [n]; both in that order
    groups: (elements per line, number of lines), as they follow each other
    """

    shorter: int
    order: torch.Tensor
    position: torch.Tensor
    values: torch.Tensor
    groups: list[tuple[int, int]]

    @classmethod
    def of(cls, segment: Segment, values: torch.Tensor) -> "_Lines":
        device = values.device if values.device.type in LINEAR_ALGEBRA_DEVICES else "cpu"
        crow, column = segment.crow.to(device).long(), segment.col.to(device).long()
        row = torch.repeat_interleave(torch.arange(segment.rows, device=device), crow.diff(), output_size=len(segment))
        row, row_counts = _without_empty(row, segment.rows)
        column, column_counts = _without_empty(column, segment.columns)
        if len(row_counts) <= len(column_counts):
            position, line, counts, shorter = row, column, column_counts, len(row_counts)
        else:
            position, line, counts, shorter = column, row, row_counts, len(column_counts)
        order = (counts[line] * len(counts) + line).argsort(stable=True)
        lengths, lines = counts.sort().values.unique_consecutive(return_counts=True)
        groups = list(zip(lengths.tolist(), lines.tolist()))
        return cls(shorter, order, position[order], values.to(device).double()[order], groups)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Some lines of equal length at a time: their elements, those that meet (int64 [lines, length, length], flat
        places in a matrix over the shorter side) and their values (fp64 [lines, length])."""
        begin = 0
        for length, lines in self.groups:
            at_a_time = max(1, PAIRS_AT_A_TIME // length**2)
            for first in range(0, lines, at_a_time):
                count = min(at_a_time, lines - first)
                span = slice(begin, begin + count * length)
                position = self.position[span].view(count, length)
                pairs = position[:, :, None] * self.shorter + position[:, None, :]
                yield span, pairs, self.values[span].view(count, length)
                begin = span.stop

    def gram(self) -> torch.Tensor:
        """P Pᵀ over the shorter side, fp64 [shorter, shorter]."""
        total = self.values.new_zeros(self.shorter**2)
        for _, pairs, values in self.blocks():
            products = values[:, :, None] * values[:, None, :]
            if total.is_cuda:  # where scatter_add_ sums in another order every time; the other way is slow on the CPU
                total.index_put_((pairs.view(-1),), products.view(-1), accumulate=True)
            else:
                total.scatter_add_(0, pairs.view(-1), products.view(-1))
        return total.view(self.shorter, self.shorter)

    def product(self, matrix: torch.Tensor) -> torch.Tensor:
        """matrix @ P at the elements of P, in the segment's order: fp64 [n]; matrix: [shorter, shorter]."""
        result = torch.empty_like(self.values)
        flat = matrix.reshape(-1)
        for span, pairs, values in self.blocks():
            weights = flat.index_select(0, pairs.view(-1)).view(pairs.shape)
            result[self.order[span]] = torch.bmm(weights, values[:, :, None]).view(-1)
        return result


def _without_empty(index: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each element's row (or column) counted among those that have elements, int64 [n], and how many each has."""
    counts = torch.bincount(index, minlength=size)
    used = counts > 0
    return (used.cumsum(0) - 1)[index], counts[used]
