"""Batches: epochs without replacement, the ranks' slices, masks, whole-split evaluation."""

import math

import numpy as np
import pytest
import torch

from core import UserError
from core.batches import Batches, fold_in, split_batch


def open_data(folder, T=16, batch_size=4, seed=0, rank=0, world_size=1, ramp=0) -> Batches:
    """The data as that rank of so many would see it."""
    data = Batches(folder, T, batch_size, seed, "cpu", ramp)
    data.rank, data.world_size = rank, world_size
    return data


def test_a_sequence_predicts_its_next_token(numbers):
    data = open_data(numbers())
    x, y, _ = data.batch("train", 3)
    assert x.shape == y.shape == (4, 16) and x.dtype == torch.int64
    assert torch.equal((x + 1) % 256, y)


@pytest.mark.parametrize("T", [1, 2, 7, 16, 100])
@pytest.mark.parametrize("length", [101, 112, 113, 120, 1000, 3071])
def test_each_token_is_a_target_equally_often(numbers, length, T):
    data = open_data(numbers(train=length), T, 1)
    count, times = (length - 1) // T, np.zeros(length, int)
    for epoch in range(2 * T + 3):
        starts = data.shuffled_starts("train", epoch * count + np.arange(count))
        targets = (starts[:, None] + np.arange(T)) % (length - 1) + 1
        assert len(np.unique(targets)) == targets.size  # without replacement
        np.add.at(times, targets.ravel(), 1)
        assert times[0] == 0 and np.ptp(times[1:]) <= 1


@pytest.mark.parametrize("length", [160, 161, 165, 170])
def test_each_epoch_is_shuffled_anew_and_cut_elsewhere(numbers, length):
    data = open_data(numbers(train=length), batch_size=1)
    count = (length - 1) // 16
    starts = data.shuffled_starts("train", np.arange(count * 20)).reshape(20, count)
    assert len({epoch[0] % (length - 1) % 16 for epoch in starts}) > 2
    assert len({tuple(np.argsort(epoch)) for epoch in starts}) > 15


def test_a_sequence_across_the_end_continues_at_the_beginning(numbers):
    data = open_data(numbers(train=100), 10, 1)
    x, y = data.splits["train"].sequences(np.array([95]), 10)
    assert x[0].tolist() == [95, 96, 97, 98, 0, 1, 2, 3, 4, 5]
    assert np.array_equal(y, x + 1)


def test_sequences_depend_on_seed_step_and_number_alone(numbers):
    folder = numbers()
    data = open_data(folder)
    late = data.batch("train", 50)[0]
    assert torch.equal(open_data(folder).batch("train", 50)[0], late)
    assert not torch.equal(open_data(folder, seed=1).batch("train", 50)[0], late)
    wide = open_data(folder, batch_size=8).batch("train", 25)[0]  # sequences 200 to 207 either way
    assert torch.equal(wide[:4], late)


def test_ranks_share_the_sequences_of_one_process(numbers):
    folder = numbers()
    whole = open_data(folder).batch("train", 7)[:2]
    shares = [open_data(folder, rank=r, world_size=2).batch("train", 7)[:2] for r in (0, 1)]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(one, torch.cat(parts))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_growing_batch_reads_the_same_sequences_on_any_number_of_ranks(numbers, world_size):
    folder, batch_size, ramp = numbers(), 24, 10
    whole = open_data(folder, 8, batch_size)
    sizes = []
    for step in range(ramp + 3):
        x, y = [], []
        for rank in range(world_size):
            data = open_data(folder, 8, batch_size, 0, rank, world_size, ramp)
            part = data.batch("train", step, multiple=2)
            assert len(part[0]) % 2 == 0 and len(part[0]) > 0
            x.append(part[0][part[1][:, 0] >= 0])
            y.append(part[1][part[1][:, 0] >= 0])
        x, y = torch.cat(x), torch.cat(y)
        first = data.sequences_before(step)
        assert len(x) == data.sequences_before(step + 1) - first
        assert part[2] == y.numel()
        starts = whole.shuffled_starts("train", np.arange(first, first + len(x)))
        expected = whole.splits["train"].sequences(starts, 8)
        assert np.array_equal(x, expected[0]) and np.array_equal(y, expected[1])
        sizes.append(len(x))
    assert sizes[0] == 2 and sizes[-3:] == [24, 24, 24] and sizes == sorted(sizes)


def test_a_mask_is_about_targets_only(numbers):
    data = open_data(numbers(mask=lambda i: i % 3 == 0))
    x, y, num_targets = data.batch("train", 0)
    assert num_targets == (y >= 0).sum() and num_targets < y.numel()
    following = (x + 1) % 256
    # token i of the file has the value i % 256, and 1,000 tokens wrap around thrice
    assert set(y[y >= 0].tolist()) <= set(following.flatten().tolist())
    assert torch.equal(y[y >= 0], following[y >= 0])
    assert 0.25 < (y >= 0).float().mean() < 0.42


def test_a_sequence_alone_is_masked_without_touching_its_input(numbers):
    folder = numbers(mask=lambda i: i % 2)
    data = open_data(folder, 10, 1)
    x, y, _ = data.batch("train", 0)
    assert x.min() >= 0 and (y == -1).any()


def test_examples_are_never_joined(numbers):
    data = open_data(numbers(train=200, val=100, row_length=10))
    assert data.T == 9
    x, _, _ = data.batch("train", 0)
    assert all(start % 10 == 0 for start in x[:, 0].tolist())
    seen = torch.cat([x[(y >= 0).any(1), 0] for x, y in data.evaluation("val", 100, 4)])
    assert seen.tolist() == list(range(0, 100, 10))


@pytest.mark.parametrize("length", [17, 160, 161, 170, 499])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_has_each_token_of_the_split_once_as_a_target(numbers, length, world_size):
    folder = numbers(val=length)
    targets = []
    for r in range(world_size):
        batches = list(open_data(folder, rank=r, world_size=world_size).evaluation("val", 1000, 4))
        assert len(batches) == math.ceil(math.ceil(math.ceil((length - 1) / 16) / world_size) / 4)
        for x, y in batches:
            assert x.shape == y.shape == (4, 16)  # one shape spares a compiler
            assert torch.equal(y[y >= 0], ((x + 1) % 256)[y >= 0])
            targets += y[y >= 0].tolist()
    assert sorted(targets) == sorted(i % 256 for i in range(1, length))


def test_a_short_evaluation_is_evenly_spaced(numbers):
    data = open_data(numbers(val=16 * 100 + 1))
    xs = torch.cat([x for x, _ in data.evaluation("val", 10, 5)])
    assert xs[:, 0].tolist() == [16 * i * 10 % 256 for i in range(10)]


def test_seeds_differ_with_each_number():
    seeds = {fold_in(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_global_batch_is_the_same_for_any_number_of_processes():
    for accumulation, batch_size, processes in ((1, 12, 1), (5, 8, 4), (8, 1, 2), (3, 7, 7)):
        total, micro_batch = split_batch(accumulation, batch_size, processes)
        assert total == accumulation * batch_size
        assert micro_batch <= batch_size and total % (processes * micro_batch) == 0
    assert split_batch(40, 12, 1) == split_batch(40, 12, 8) == (480, 12)  # nanoGPT's
    with pytest.raises(UserError, match="batch_size=5 is not divisible by 2 processes"):
        split_batch(3, 5, 2)
