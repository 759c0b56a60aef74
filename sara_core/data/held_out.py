"""Pictures that are kept out of a training, and what its model's loss on them is as it goes on."""

import math
from collections.abc import Callable, Sequence

import torch

from .denoising_loss import Network, Sample
from .draws import Draw

# Of each picture: noise levels, evenly over those that are trained. Of a run: how often it is measured after its start.
LEVELS = 4
TIMES = 25


class HeldOut:
    """Losses of the same pictures with the same noise at the same noise levels, so that two of them differ by nothing
    but what was trained between.

    network: the model that is trained; samples: pictures that it is not trained on
    levels: positions of the noise levels that are trained; seed: of the noise

    losses: (step, mean loss) of what was measured so far, by this process
    """

    def __init__(self, network: Network, samples: Sequence[Sample], levels: Sequence[int], seed: int):
        self._network = network
        generator = torch.Generator().manual_seed(seed)
        chosen = [levels[int((part + 0.5) * len(levels) / LEVELS)] for part in range(LEVELS)]
        self._draws = [
            Draw(sample, level, torch.randn(sample.latent.shape, generator=generator))
            for sample in samples for level in chosen
        ]  # fmt: skip
        self.images = len(samples)
        self.losses: list[tuple[int, float]] = []

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to measure after this step of so many: some TIMES a run, and at its end."""
        return step % max(1, steps // TIMES) == 0 or step == steps

    @torch.no_grad()
    def measure(self, step: int, before_each: Callable[[], None] = lambda: None) -> float:
        """The mean loss after so many steps, fp32 mean squared error; noted in `losses` if it is finite.

        before_each: called before each forward pass; may raise to stop
        """
        total = 0.0
        for draw in self._draws:
            before_each()
            total += self._network.losses([draw]).item()
        loss = total / len(self._draws)
        if math.isfinite(loss):
            self.losses.append((step, loss))
        return loss


def chosen_pictures(kinds: Sequence[str], count: int, seed: int) -> list[int]:
    """Places of the pictures to hold out, in order. Pictures of equal kind are the same one, shown several times; they
    are held out together, and count as one.

    Raises ValueError if that would be all there are.
    """
    different = list(dict.fromkeys(kinds))
    if not count < len(different):
        raise ValueError(f"{count} of {len(different)} pictures cannot be held out: none would be left to train on")
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {different[place] for place in order[:count]}
    return [place for place, kind in enumerate(kinds) if kind in chosen]
