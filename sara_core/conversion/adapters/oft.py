"""OFT (arXiv 2306.07280) and BOFT (arXiv 2311.06243) of LyCORIS: rotations of a weight's rows.

A block B stands for the rotation R = (I + Q)(I − Q)⁻¹ with Q = B − Bᵀ (Cayley). Alpha, where there is one, times the
number of rows bounds ‖Q‖ over all blocks together. OFT turns each group of neighbouring rows by Rᵀ of its block, BOFT
all rows several times by R, each time in groups of rows that lie further apart (a butterfly); either may then rescale
each row. Shapes that do not fit raise IndexError, blocks too large to stand for a rotation torch.linalg.LinAlgError.
"""

import torch

from .alpha import Alpha

# Each doubles the distance of the rows that are turned together, which no weight has more rows for.
_MOST_STEPS = 31
# Elements of Q up to which a rotation computed in float64 has the digits that float32 holds. Far beyond, nothing is
# left of the identity in I ± Q: with an odd number of rows both are then singular, and what solving them gives, or
# whether it fails, is up to the rounding of one processor or another.
_TOO_LARGE = 1e8


def oft(blocks: torch.Tensor, alpha: Alpha, weight: torch.Tensor, rescale: torch.Tensor | None) -> torch.Tensor:
    """W' − W. blocks: [groups, n, n]; weight: float32 [groups · n, …]; rescale: as in `boft`"""
    rotation = _rotation(blocks, alpha, weight.shape[0])
    turned = (rotation.transpose(-1, -2) @ _grouped(weight, blocks)).view(weight.shape)
    return (turned if rescale is None else turned * rescale) - weight


def boft(blocks: torch.Tensor, alpha: Alpha, weight: torch.Tensor, rescale: torch.Tensor | None) -> torch.Tensor:
    """W' − W. blocks: [steps, groups, n, n], n even; rescale: a factor for each row, as it broadcasts"""
    steps, _, size, _ = blocks.shape
    if size % 2 or steps > _MOST_STEPS:
        raise IndexError(blocks.shape)
    turned = weight
    for step, rotation in enumerate(_rotation(blocks, alpha, weight.shape[0])):
        order = torch.arange(weight.shape[0], device=weight.device).view(-1, 2, size // 2 << step)
        order = order.transpose(1, 2).reshape(-1)
        groups = rotation @ _grouped(turned[order], rotation)
        turned = torch.empty_like(weight).index_copy(0, order, groups.view(weight.shape))
    return (turned if rescale is None else turned * rescale) - weight


def _rotation(blocks: torch.Tensor, alpha: Alpha, rows: int) -> torch.Tensor:
    if blocks.shape[-1] != blocks.shape[-2] or not blocks.numel():
        raise IndexError(blocks.shape)
    skew = blocks.double() - blocks.double().transpose(-1, -2)
    if alpha.value is not None and alpha.value > 0:
        skew = skew * torch.clamp(alpha.value * rows / (skew.norm() + 1e-8), max=1)
    if not (skew.is_meta or bool((skew.abs() < _TOO_LARGE).all())):
        raise torch.linalg.LinAlgError("the blocks are too large")
    identity = torch.eye(blocks.shape[-1], device=blocks.device, dtype=skew.dtype)
    # The two factors commute, so that the inverse may stand on either side.
    return torch.linalg.solve(identity - skew, identity + skew).to(blocks.dtype)


def _grouped(weight: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    groups, size, _ = blocks.shape
    return weight.reshape(groups, size, weight.shape[1:].numel())
