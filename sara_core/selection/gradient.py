"""The elements to which a loss is most sensitive: those with the largest |w · ∂L/∂w| (SNIP, Lee et al., ICLR 2019).

No dense gradient outlives one layer's backward, so the elements are found in three passes over the same loss:

1. the scores of an even sample of elements, and how often each weight is used; the sample tells what score somewhat
   more elements than are wanted reach (a bound)
2. in the backward of each use, the elements that may reach the bound. A score is a sum over the uses, so it can do so
   only if in one of `uses` of them it reaches bound / uses
3. the exact scores of these, and the cut

A weight that is used once (nearly all are) gives few elements more than are wanted in the second pass. One that is used
k times, because its module is shared or the loss adds up k batches, gives up to k times as many, and more.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch

from ..backward.store import Store
from ..backward.support import Support
from ..backward.weight_gradient import row_chunks
from ..errors import SelectionError
from ..tensors.elements import gather
from .magnitudes import MARGIN, SAMPLE, Shares, cut

# The second and third pass may compute the same gradient in two ways. Where the last element taken is no further above
# the bound than this, rounding may have kept out another.
PRECISION = 1.05
# Losses of two passes that differ by more than this share are not the same loss with other rounding.
SAME_LOSS = 1e-2
# A bound below this is taken for 0: every element with a gradient is then looked at.
NO_BOUND = 1e-30


class GradientScores:
    """Finds the elements with the largest |w · ∂L/∂w| of one loss.

    attached: store → context in which the model computes, and leaves gradients in that store and nowhere else
    loss: computes the loss, a scalar with graph, of any scale; the same one each time it is called. It may draw from
        torch's global random numbers, which are the same in every pass and left as they were.
    device: on which the model computes
    """

    def __init__(
        self,
        attached: Callable[[Store], AbstractContextManager],
        loss: Callable[[], torch.Tensor],
        device: torch.device | str,
    ):
        self.attached, self.loss, self.device = attached, loss, torch.device(device)
        self._first_loss: float | None = None

    def largest(self, weights: Mapping[str, torch.Tensor], shares: Shares) -> dict[str, torch.Tensor]:
        """The positions chosen in each weight, int32, sorted: of each group of names in `shares` as many as it says.

        weights: name → w of the score, which may be another tensor than the model computes with

        Raises SelectionError where fewer elements have a gradient, and for a loss that is not finite or not the same.
        """
        stride = max(1, sum(weight.numel() for weight in weights.values()) // SAMPLE)
        sample = {
            name: torch.arange(0, weight.numel(), stride, dtype=torch.int32, device=weight.device)
            for name, weight in weights.items()
        }
        store = _CountingStore(_support(sample, weights), self.device)
        scores = self._scores(store, sample, weights)
        if store.values.grad is not None and not torch.isfinite(store.values.grad).all():
            raise SelectionError(
                "The gradient that is to choose the weights is not finite. In fp16 it overflows easily: load the model "
                "in bf16 or fp32, or choose by another rule."
            )
        uses = dict(zip(weights, store.uses))
        bounds = {}
        for names, n in shares:
            elements = sum(weights[name].numel() for name in names)
            bounds.update(dict.fromkeys(names, _bound([scores[name] for name in names], n / elements)))
        while True:
            found = self._candidates(sample, weights, {n: bounds[n] / max(1, uses[n]) for n in weights})
            scores = self._scores(Store(_support(found, weights), self.device), found, weights)
            chosen, retried = {}, []
            for names, n in shares:
                indices, lowest = _cut(names, found, scores, n)
                bound = bounds[names[0]]
                if indices is not None and lowest >= PRECISION * bound:
                    chosen.update(indices)
                elif bound > 0:
                    retried += names
                else:
                    reached = sum(int((scores[name] > 0).sum()) for name in names)
                    raise SelectionError(
                        f"Only {reached:,} elements have a gradient in this loss, fewer than the {n:,} that are asked "
                        "for: lower the density, or leave out with an exclude pattern what takes no part in the loss."
                    )
            if not retried:
                return chosen
            bounds.update((name, bounds[name] / 2 if bounds[name] > NO_BOUND else 0.0) for name in retried)

    def _scores(self, store: Store, positions, weights) -> dict[str, torch.Tensor]:
        """|w · ∂L/∂w| at positions of each weight, which `store` trains: fp32, on the weight's device."""
        if store.support.nnz:
            self._run(store)
        gradient = store.values.grad
        if gradient is None:
            gradient = torch.zeros_like(store.values)
        scores = {}
        for (name, position), segment in zip(positions.items(), store.support):
            values = gather(weights[name], position).float()
            # What is no number in the model is never chosen; the gradient is known to be finite.
            scores[name] = values.nan_to_num_(0.0, 0.0, 0.0).mul_(gradient[segment.span].to(values.device)).abs_()
        return scores

    def _candidates(self, sample, weights, bounds) -> dict[str, torch.Tensor]:
        """Positions, int32 and sorted, of the elements whose score reaches the bound in one use of a weight."""
        store = _CandidateStore(_support(sample, weights), self.device, weights, bounds)
        self._run(store)
        empty = torch.empty(0, dtype=torch.int32)
        return {
            name: torch.cat([empty.to(weights[name].device), *parts]).unique()
            for name, parts in zip(weights, store.found)
        }

    def _run(self, store: Store) -> None:
        random_numbers = torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])
        with random_numbers, torch.enable_grad(), self.attached(store):
            loss = self.loss()
            if not loss.requires_grad:
                raise SelectionError("The loss that is to choose the weights has no gradient: it does not use them.")
            value = loss.item()
            if not math.isfinite(value):
                raise SelectionError(f"The loss that is to choose the weights is {value}: check images and captions.")
            if self._first_loss is None:
                self._first_loss = value
            if abs(value - self._first_loss) > SAME_LOSS * abs(self._first_loss):
                raise SelectionError(
                    f"The loss that is to choose the weights was {self._first_loss:.6g} first and then {value:.6g}: it "
                    "must be the same each time it is computed. Take the same samples, and seed its random numbers."
                )
            loss.backward()


def _support(positions, weights) -> Support:
    return Support.from_indices(positions, {name: weights[name].shape for name in positions})


def _bound(scores: list[torch.Tensor], share: float) -> float:
    """A score that somewhat more than this share of all elements reach, if all are as these of the sample."""
    sample = torch.cat([score.cpu() for score in scores])
    rank = min(len(sample), int(MARGIN * share * len(sample)) + 16)
    return float(sample.kthvalue(len(sample) - rank + 1).values)


def _cut(names, found, scores, n: int) -> tuple[dict[str, torch.Tensor] | None, float]:
    """The n highest scores above 0 and the lowest of them, or None where there are fewer."""
    if sum(int((scores[name] > 0).sum()) for name in names) < n:
        return None, 0.0
    indices, highest = cut({name: found[name] for name in names}, {name: -scores[name] for name in names}, n)
    return indices, -highest


class _CountingStore(Store):
    """uses: how often a backward has reached each segment"""

    def __init__(self, support: Support, device):
        super().__init__(support, device)
        self.uses = [0] * len(support)

    def note_use(self, number):
        super().note_use(number)
        self.uses[number] += 1


class _CandidateStore(Store):
    """Takes no gradients, but notes the elements at which they are large.

    weights: name → w; bounds: name → |w · ∂L/∂w| to be reached in one use
    found: of each segment positions, int32 on the weight's device; they may repeat
    """

    def __init__(self, support: Support, device, weights, bounds):
        super().__init__(support, device)
        self.weights, self.bounds = weights, [bounds[s.name] for s in support]
        self.found: list[list[torch.Tensor]] = [[] for _ in support]

    def take(self, number, op, x, grad_output, route):
        x, grad_output = x.float(), grad_output.float()
        segment = self.support.segments[number]
        weight = self.weights[segment.name]
        for first, last in row_chunks(op, segment, x):
            gradient = op.weight_gradient_rows(x, grad_output, segment.shape, first, last)
            self._note(number, first * segment.columns, weight[first:last], gradient)

    def take_dense(self, number, gradient):
        self._note(number, 0, self.weights[self.support.segments[number].name], gradient)

    def _note(self, number, start, weight, gradient):
        score = weight.reshape(-1).to(gradient.device, torch.float32) * gradient.reshape(-1)
        position = ((score.abs_() >= self.bounds[number]) & (score > 0)).nonzero().view(-1)
        self.found[number].append(position.add_(start).to(weight.device, torch.int32))
