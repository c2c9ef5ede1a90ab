"""The data: epochs without replacement, slices, masks, whole-split evaluation, damaged files."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from core import UserError
from core.batches import Batches, fold_in
from core.dataset import Writer
from core.tokenizer import ByteTokenizer, CharTokenizer


def open_data(folder, T=16, batch_size=4, seed=0, rank=0, world_size=1, ramp=0) -> Batches:
    """The data as that rank of so many would see it."""
    data = Batches(folder, T, batch_size, seed, "cpu", ramp)
    data.rank, data.world_size = rank, world_size
    return data


def test_a_sequence_predicts_its_next_token(numbers):
    data = open_data(numbers())
    x, y = data.batch("train", 3)
    assert x.shape == y.shape == (4, 16) and x.dtype == torch.int64
    assert torch.equal((x + 1) % 256, y)


def test_an_epoch_reads_each_sequence_once_and_the_next_is_cut_elsewhere(numbers):
    data = open_data(numbers(train=16 * 10 + 1), batch_size=1)  # nine sequences per epoch
    starts = data.shuffled_starts("train", np.arange(9 * 20)).reshape(20, 9)
    for epoch in starts:
        assert len(set(epoch)) == 9 and len({start % 16 for start in epoch}) == 1
    assert len({epoch[0] % 16 for epoch in starts}) > 5
    assert len({tuple(np.argsort(epoch)) for epoch in starts}) == 20


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
    whole = open_data(folder).batch("train", 7)
    shares = [open_data(folder, rank=r, world_size=2).batch("train", 7) for r in (0, 1)]
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
        assert data.num_targets(y, step) == y.numel()
        starts = whole.shuffled_starts("train", np.arange(first, first + len(x)))
        expected = whole.splits["train"].sequences(starts, 8)
        assert np.array_equal(x, expected[0]) and np.array_equal(y, expected[1])
        sizes.append(len(x))
    assert sizes[0] == 2 and sizes[-3:] == [24, 24, 24] and sizes == sorted(sizes)


def test_a_mask_is_about_targets_only(numbers):
    data = open_data(numbers(mask=lambda i: i % 3 == 0))
    x, y = data.batch("train", 0)
    following = (x + 1) % 256
    # token i of the file has the value i % 256, and 1,000 tokens wrap around thrice
    assert set(y[y >= 0].tolist()) <= set(following.flatten().tolist())
    assert torch.equal(y[y >= 0], following[y >= 0])
    assert 0.25 < (y >= 0).float().mean() < 0.42


def test_a_sequence_alone_is_masked_without_touching_its_input(numbers):
    folder = numbers(mask=lambda i: i % 2)
    data = open_data(folder, 10, 1)
    x, y = data.batch("train", 0)
    assert x.min() >= 0 and (y == -1).any()


def test_examples_are_never_joined(numbers):
    data = open_data(numbers(train=200, val=100, row_length=10))
    assert data.T == 9
    x, _ = data.batch("train", 0)
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


def test_the_writer_leaves_the_old_dataset_when_it_fails(numbers):
    folder = numbers(train=300)
    before = {name: open(f"{folder}/{name}", "rb").read() for name in os.listdir(folder)}
    with pytest.raises(RuntimeError), Writer(folder, ByteTokenizer(), {"name": "new"}) as writer:
        writer.append("train", [1, 2, 3])
        raise RuntimeError("the power went")
    assert before == {name: open(f"{folder}/{name}", "rb").read() for name in os.listdir(folder)}


def test_a_new_dataset_without_masks_drops_the_old_masks(numbers):
    folder = numbers(mask=lambda i: i % 2)
    assert open_data(folder).masked
    assert not open_data(numbers()).masked
    assert sorted(os.listdir(folder)) == ["meta.json", "train.bin", "val.bin"]


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokenizer = CharTokenizer(map(chr, range(0x10000, 0x10000 + 70000)))
    with Writer(str(tmp_path), tokenizer, {"name": "wide"}) as writer:
        for split in ("train", "val"):
            writer.append(split, np.arange(70000))
    assert json.load(open(tmp_path / "meta.json"))["dtype"] == "uint32"
    data = open_data(str(tmp_path))
    batches = [data.batch("train", step) for step in range(1000)]  # almost an epoch
    assert all(torch.equal(x + 1, y) for x, y in batches)
    assert max(y.max() for _, y in batches) > 65535


def test_a_folder_of_nanogpt_is_valid_as_it_is(tmp_path):
    for split in ("train", "val"):
        np.arange(50257).astype(np.uint16).tofile(tmp_path / f"{split}.bin")
    data = open_data(str(tmp_path))
    assert data.tokenizer.kind == "gpt2" and data.tokenizer.vocab_size == 50257
    x, y = data.batch("train", 0)
    assert torch.equal(x + 1, y)


def damage(folder, name, change):
    path = os.path.join(folder, name)
    content = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(change(content))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("train.bin", lambda b: b[:-1], "has 1999 bytes, not those of 1000 tokens"),
        ("train.bin", lambda b: b[:-2], "has 1998 bytes, not those of 1000 tokens"),
        ("val.bin", lambda b: b"", "has 0 bytes, not those of 500 tokens"),
        ("train.bin", lambda b: b"\xff\xff" * (len(b) // 2), "id 65535"),
        ("meta.json", lambda b: b[:20], "is damaged"),
    ],
)
def test_damaged_files_are_one_sentence(numbers, name, change, sentence):
    folder = numbers()
    damage(folder, name, change)
    with pytest.raises(UserError, match=sentence):
        open_data(folder).batch("train", 0)


def test_missing_and_short_data_are_one_sentence(numbers):
    folder = numbers(train=20)
    with pytest.raises(UserError, match="20 tokens, fewer than one sequence of 33"):
        open_data(folder, T=32)
    os.remove(f"{folder}/val.bin")
    with pytest.raises(FileNotFoundError, match=r"val\.bin"):
        open_data(folder)
    with pytest.raises(UserError, match="need --block_size=63"):
        open_data(numbers(row_length=64))


def test_memory_does_not_grow_with_a_mapped_file(tmp_path):
    """200 MB are read through; the process may grow by a small part of that."""
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import resource, torch, numpy as np
from core.batches import Batches
for split in ("train", "val"):
    np.zeros(10**8 if split == "train" else 2000, np.uint16).tofile(split + ".bin")
data = Batches(".", 1024, 64, 0, "cpu")
for step in range(20): data.batch("train", step)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in range(20, 1500): data.batch("train", step)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 40_000  # KiB


def test_seeds_differ_with_each_number():
    seeds = {fold_in(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)
