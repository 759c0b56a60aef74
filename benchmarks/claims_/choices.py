"""Other choices of weights than by size alone, as rules of sara_core.SaRA; `largest_of` any score."""

from collections.abc import Callable, Iterable, Mapping

import torch

from . import methods


def largest_of(scores: Mapping[str, torch.Tensor]):
    """A selection rule: the elements with the largest scores, each weight's of its shape, over the whole model."""

    def chosen(request):
        positions = {}
        for share, wanted in request.shares:
            flat = torch.cat([scores[name].flatten() for name in share])
            best = flat.topk(wanted).indices.sort().values
            ends = torch.tensor([scores[name].numel() for name in share], device=best.device).cumsum(0)
            borders = [0, *torch.searchsorted(best, ends).tolist()]
            for name, end, first, last in zip(share, ends.tolist(), borders, borders[1:]):
                positions[name] = best[first:last] - (end - scores[name].numel())
        return positions

    return chosen


def steepest(request):
    """A rule that needs a loss: the elements with the largest |∂L/∂w|."""
    ones = {name: torch.ones_like(weight) for name, weight in request.weights.items()}
    return request.by_gradient(ones, request.shares)


def steepest_of_small(request):
    """A rule that needs a loss: of the half of all weights that is smaller, the elements with the largest |∂L/∂w|."""
    sizes = torch.cat([weight.detach().flatten().abs().float() for weight in request.weights.values()])
    middle = sizes.median()
    small = {name: (weight.detach().abs() <= middle).float() for name, weight in request.weights.items()}
    return request.by_gradient(small, request.shares)


def steadiest(model: torch.nn.Module, losses: Iterable[Callable[[], torch.Tensor]]):
    """A rule: the elements whose gradient keeps its sign, by |Σ g| / √(Σ g²) over some losses. So far Adam would move
    them, for its steps are as long as a gradient is steady, not as it is large. Takes two dense gradients' memory.

    losses: each computes a loss of the model, a scalar with graph
    """
    weights = {f"{name}.weight": module.weight for name, module in methods.layers(model).items()}
    sums, squares = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    wanted = [weight.requires_grad for weight in weights.values()]
    for weight in weights.values():
        weight.requires_grad_(True)
    for loss in losses:
        for name, gradient in zip(weights, torch.autograd.grad(loss(), list(weights.values()))):
            sums[name] += gradient
            squares[name] += gradient.square()
    for weight, before in zip(weights.values(), wanted):
        weight.requires_grad_(before)
    return largest_of({name: sums[name].abs() / squares[name].sqrt().clamp_min(1e-12) for name in weights})


def of_small_effect(model: torch.nn.Module, forward: Callable[[], object]):
    """A rule: the elements with the smallest |w| · ‖x‖, x being what a weight's column is multiplied with, over all
    samples and places (Wanda's score, https://arxiv.org/abs/2306.11695, section 3, over the whole model).

    forward: computes something representative with the model
    """
    squares: dict[str, torch.Tensor] = {}

    def watched(name: str):
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            axis = 1 if isinstance(module, torch.nn.Conv2d) else -1
            own = x.square().movedim(axis, 0).flatten(1).mean(1)
            squares[name] = squares.get(name, 0) + own

        return hook

    layers = methods.layers(model)
    handles = [module.register_forward_pre_hook(watched(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    scores = {}
    for name, module in layers.items():
        shape = (1, -1, *[1] * (module.weight.dim() - 2))
        scores[f"{name}.weight"] = -module.weight.detach().abs() * squares[name].sqrt().view(shape)
    return largest_of(scores)
