"""What is measured of a trained model, from its pictures of held-out names, by the judge.

styled    share of pictures with the trigger that the judge takes for the style
text      mean cosine of a picture and its name (the CLIP score's place)
right     share whose name fits best among a hundred
kid, fid  of the judge's features, against the style's own pictures of held-out names (torchmetrics)
drift     mean distance (1 - cosine of features) of pictures without the trigger from the base's own, same noise
leaked    share of pictures without the trigger that the judge takes for the style
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .judge import STYLES, Verdicts

KID_SUBSETS, KID_SUBSET = 50, 100


def measure(
    verdicts: Verdicts, style: str, with_trigger: torch.Tensor, without: torch.Tensor, base: torch.Tensor,
    style_pictures: torch.Tensor, asked: Sequence[str], choice: Sequence[str],
) -> dict[str, float]:  # fmt: skip
    """The measures above. Pictures are float [n, 64, 64, 3] in 0..1; asked: the name of each of the first three's;
    choice: the names that `right` chooses among; style_pictures: what the style's are compared with."""
    number = STYLES.index(style)
    ours, theirs = verdicts.features(with_trigger), verdicts.features(style_pictures)
    plain, before = verdicts.features(without), verdicts.features(base)
    return {
        "styled": _share(verdicts.styles(with_trigger).argmax(1) == number),
        "text": verdicts.text_score(with_trigger, asked).mean().item(),
        "right": _share(verdicts.is_right(with_trigger, asked, choice)),
        "kid": kid(ours, theirs),
        "fid": fid(ours, theirs),
        "drift": (1 - F.cosine_similarity(plain, before)).mean().item(),
        "leaked": _share(verdicts.styles(without).argmax(1) == number),
    }


def kept(
    verdicts: Verdicts, pictures: torch.Tensor, base: torch.Tensor, asked: Sequence[str], choice: Sequence[str]
) -> dict[str, float]:
    """text, right and drift of pictures without a trigger, beside the base's own of the same names and noise."""
    ours, before = verdicts.features(pictures), verdicts.features(base)
    return {
        "text": verdicts.text_score(pictures, asked).mean().item(),
        "right": _share(verdicts.is_right(pictures, asked, choice)),
        "drift": (1 - F.cosine_similarity(ours, before)).mean().item(),
    }


def _share(true: torch.Tensor) -> float:
    return true.float().mean().item()


class _AsTheyAre(torch.nn.Module):
    """Features in a picture's place: torchmetrics asks a network for them."""

    num_features: int

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def kid(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Kernel inception distance × 1000 of features [n, width]; the same subsets for the same sizes."""
    from torchmetrics.image.kid import KernelInceptionDistance

    ours, theirs = ours.cpu(), theirs.cpu()
    subset = min(KID_SUBSET, len(ours), len(theirs))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        metric = KernelInceptionDistance(_AsTheyAre(ours.shape[1]), subsets=KID_SUBSETS, subset_size=subset)
        metric.update(theirs, real=True)
        metric.update(ours, real=False)
        return 1000 * metric.compute()[0].item()


def fid(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Fréchet distance of features [n, width]."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    ours, theirs = ours.cpu(), theirs.cpu()
    metric = FrechetInceptionDistance(_AsTheyAre(ours.shape[1]), input_img_size=(3, 64, 64))
    metric.update(theirs, real=True)
    metric.update(ours, real=False)
    return metric.compute().item()
