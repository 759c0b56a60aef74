"""The order in which samples are drawn: every one once per epoch, and one size per batch as far as that allows."""

from collections.abc import Hashable, Sequence

import torch


class BucketSampler:
    """Batches of sample numbers, in a new order each epoch.

    groups: one value per sample; only samples of equal value go through a model together
    batch_size: numbers per batch; more than there are samples repeats some
    generator: on the CPU; shared with whoever else draws from it

    Epochs follow one another without a gap: what an epoch leaves of a batch, the next one fills. Batches are of one
    group, except that one and those of the samples that are left when no group can fill a batch of its own.
    """

    def __init__(self, groups: Sequence[Hashable], batch_size: int, generator: torch.Generator):
        self.groups, self.batch_size, self.generator = groups, batch_size, generator
        self.queue: list[int] = []

    def next_batch(self) -> list[int]:
        """Numbers of the next `batch_size` samples."""
        while len(self.queue) < self.batch_size:
            self.queue += self._epoch()
        batch, self.queue = self.queue[:self.batch_size], self.queue[self.batch_size:]
        return batch

    def _epoch(self) -> list[int]:
        shuffled = torch.randperm(len(self.groups), generator=self.generator).tolist()
        missing = -len(self.queue) % self.batch_size
        order, waiting = shuffled[:missing], {}
        for number in shuffled[missing:]:
            batch = waiting.setdefault(self.groups[number], [])
            batch.append(number)
            if len(batch) == self.batch_size:
                order += waiting.pop(self.groups[number])
        return order + [number for batch in waiting.values() for number in batch]
