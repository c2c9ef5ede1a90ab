"""The format on disk: written whole or not at all, of any vocabulary, damaged files, nanoGPT's."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from core import UserError
from core.batches import Batches
from core.dataset import Writer
from core.tokenizer import ByteTokenizer, CharTokenizer


def open_data(folder, T=16) -> Batches:
    return Batches(folder, T, batch_size=4, seed=0, device="cpu")


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
