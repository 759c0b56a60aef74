"""The order of samples: every one once per epoch, a new order each time, one size per batch as far as possible."""

import pytest
import torch

from sara_core.data.epochs import BucketSampler

GROUPS = {
    "one group": [0] * 12,
    "three groups": [0] * 5 + [1] * 4 + [2] * 3,
    "all different": list(range(7)),
    "one sample": [0],
}


def shuffled(groups, batch_size, seed=0):
    return BucketSampler(groups, batch_size, torch.Generator().manual_seed(seed))


def drawn(epochs, batches):
    return [number for _ in range(batches) for number in epochs.next_batch()]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 12, 17])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_every_sample_comes_once_per_epoch(groups, batch_size):
    numbers = drawn(shuffled(groups, batch_size), 12 * len(groups))
    assert len(numbers) == 12 * len(groups) * batch_size
    for start in range(0, len(numbers), len(groups)):
        assert sorted(numbers[start:start + len(groups)]) == list(range(len(groups)))


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_one_group_is_drawn_in_the_order_of_plain_permutations(batch_size):
    generator = torch.Generator().manual_seed(3)
    plain = sum((torch.randperm(10, generator=generator).tolist() for _ in range(6)), [])
    numbers = drawn(shuffled([0] * 10, batch_size, seed=3), 60 // batch_size)
    assert numbers == plain[:len(numbers)]


def test_orders_differ_from_epoch_to_epoch_and_from_seed_to_seed():
    numbers, other = drawn(shuffled([0] * 20, 4, seed=0), 10), drawn(shuffled([0] * 20, 4, seed=1), 10)
    assert numbers[:20] != numbers[20:] and numbers != other
    assert numbers == drawn(shuffled([0] * 20, 4, seed=0), 10)


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_of_one_group_except_with_what_is_left_over(seed):
    groups, batch_size = [0] * 9 + [1] * 6 + [2] * 5, 4  # 20 samples: epochs end with a batch
    epochs = shuffled(groups, batch_size, seed)
    for _ in range(3):
        batches = [epochs.next_batch() for _ in range(5)]
        kinds = [len({groups[number] for number in batch}) for batch in batches]
        assert kinds[:4] == [1, 1, 1, 1]  # 9 // 4 + 6 // 4 + 5 // 4; the samples that are left over come last


def test_groups_take_turns_in_random_order():
    groups = [0] * 40 + [1] * 40
    epochs = shuffled(groups, 4)
    kinds = [groups[epochs.next_batch()[0]] for _ in range(20)]
    assert 3 < sum(a != b for a, b in zip(kinds, kinds[1:])) < 17


def test_a_batch_between_two_epochs_leaves_the_others_of_one_group():
    groups = [0] * 9 + [1] * 9  # 18 samples in batches of 4
    epochs = shuffled(groups, 4)
    kinds = [len({groups[number] for number in epochs.next_batch()}) for _ in range(90)]
    assert sum(kind > 1 for kind in kinds) <= 2 * 20  # per epoch of 20: the one it begins with, the one of leftovers
