"""The format on disk: written whole or not at all, of any vocabulary, damaged files, nanoGPT's."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from core import UserError
from core.batches import Batches
from core.dataset import Writer, ensure_prepared, is_made_by, read_meta
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


def test_what_a_killed_writer_left_is_gone_after_the_next(numbers):
    folder = numbers()
    for name in ("train.bin.tmp", "train.mask.bin.tmp", "meta.json.tmp"):
        Path(folder, name).write_bytes(b"half")
    numbers()
    assert sorted(os.listdir(folder)) == ["meta.json", "train.bin", "val.bin"]


def test_two_that_write_the_same_dataset_take_turns(tmp_path):
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from core.dataset import Writer
from core.tokenizer import ByteTokenizer
with Writer("toy", ByteTokenizer(), {{"name": "second"}}) as writer:
    for split in ("val", "train"):
        writer.append(split, [2] * 200)
"""
    with Writer(str(tmp_path / "toy"), ByteTokenizer(), {"name": "first"}) as writer:
        writer.append("train", [1] * 100)
        command = [sys.executable, "-c", program]
        second = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert "waiting" in second.stdout.readline()
        assert os.listdir(tmp_path / "toy") == ["train.bin.tmp"]
        writer.append("val", [1] * 100)
    assert second.wait(60) == 0
    data = open_data(str(tmp_path / "toy"))
    assert data.meta["source"] == {"name": "second"} and data.splits["val"].length == 200
    assert sorted(os.listdir(tmp_path / "toy")) == ["meta.json", "train.bin", "val.bin"]


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokenizer = CharTokenizer(map(chr, range(0x10000, 0x10000 + 70000)))
    with Writer(str(tmp_path), tokenizer, {"name": "wide"}) as writer:
        for split in ("train", "val"):
            writer.append(split, np.arange(70000))
    assert json.load(open(tmp_path / "meta.json"))["dtype"] == "uint32"
    data = open_data(str(tmp_path))
    batches = [data.batch("train", step) for step in range(1000)]  # almost an epoch
    assert all(torch.equal(x + 1, y) for x, y, _ in batches)
    assert max(y.max() for _, y, _ in batches) > 65535


def test_a_folder_of_nanogpt_is_valid_as_it_is(tmp_path):
    for split in ("train", "val"):
        np.arange(50257).astype(np.uint16).tofile(tmp_path / f"{split}.bin")
    data = open_data(str(tmp_path))
    assert data.tokenizer.kind == "gpt2" and data.tokenizer.vocab_size == 50257
    x, y, _ = data.batch("train", 0)
    assert torch.equal(x + 1, y)


def test_unk_is_never_a_target(tmp_path):
    tokenizer = CharTokenizer("abc", ["<pad>", "<unk>"])
    with Writer(str(tmp_path), tokenizer, {"name": "x"}) as writer:
        ids = tokenizer.encode("ab?c!" * 40)
        writer.append("train", ids)
        writer.append("val", ids, np.arange(200) % 2)
    data = open_data(str(tmp_path))
    x, y, _ = data.batch("train", 0)
    assert (x == 1).any() and not (y == 1).any()
    assert torch.equal((y == -1)[:, :-1], (x == 1)[:, 1:])  # all others are
    assert set(y[y >= 0].tolist()) == {2, 3, 4}
    assert not any((y == 1).any() for _, y in data.evaluation("val", 100, 4))


def save_nanogpt(folder, ids, meta=None):
    for split in ("train", "val"):
        np.array(ids, np.uint16).tofile(folder / f"{split}.bin")
    if meta is not None:
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def test_nanogpts_characters_are_read_from_meta_pkl(tmp_path):
    text = "to be or not to be, that is the question\n" * 20
    chars = sorted(set(text))
    stoi, itos = {c: i for i, c in enumerate(chars)}, dict(enumerate(chars))
    ids = [stoi[c] for c in text]
    save_nanogpt(tmp_path, ids, {"vocab_size": len(chars), "stoi": stoi, "itos": itos})
    tokenizer = open_data(str(tmp_path)).tokenizer
    assert tokenizer.to_dict() == {"kind": "char", "chars": chars, "special": []}
    assert tokenizer.encode(text).tolist() == ids and tokenizer.decode(ids) == text


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


@pytest.mark.parametrize(
    "meta", [Evil(), {"stoi": Evil()}, {"vocab_size": 3}, {"stoi": {"a": 1, "b": 2}}, [1], 7]
)
def test_another_meta_pkl_is_one_sentence_and_nothing_in_it_runs(tmp_path, monkeypatch, meta):
    monkeypatch.chdir(tmp_path)
    save_nanogpt(tmp_path, range(300), meta)
    with pytest.raises(UserError, match=r"meta\.pkl is not one of nanoGPT's characters"):
        read_meta(str(tmp_path))
    assert not os.path.exists("evil")


def test_a_missing_meta_json_is_no_proof_of_gpt2(tmp_path):
    save_nanogpt(tmp_path, np.arange(1000) % 65)
    with pytest.raises(UserError, match=r"no meta\.json that names its tokenizer"):
        read_meta(str(tmp_path))
    with pytest.raises(UserError, match="there is no dataset typo"):
        read_meta("typo")


def test_a_dataset_is_made_again_by_another_command_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def source(command: str) -> str:
        ensure_prepared("data/addition", command)
        return read_meta("data/addition")["source"]["name"]

    one = "projects.arithmetic.prepare_addition --digits=1 --held_out=20"
    two = "projects.arithmetic.prepare_addition --held_out=20"
    assert "1 digits" in source(one)
    made = os.stat("data/addition/train.bin").st_mtime_ns
    source(one)
    assert os.stat("data/addition/train.bin").st_mtime_ns == made
    assert "2 digits" in source(two)
    assert "1 digits" in source(one)
    with pytest.raises(UserError, match="did not make"):
        source("projects.arithmetic.prepare_addition --digits=99")
    assert "1 digits" in read_meta("data/addition")["source"]["name"]  # the old one is kept


def test_what_was_made_by_hand_may_have_more_options(numbers):
    folder = numbers()
    path = os.path.join(folder, "meta.json")
    meta = json.load(open(path))
    meta["prepare"] = ["prepare_shakespeare.py", "--input=my.txt"]
    json.dump(meta, open(path, "w"))
    assert is_made_by(folder, "prepare_shakespeare.py")
    assert is_made_by(folder, "prepare_shakespeare.py --input=my.txt")
    assert not is_made_by(folder, "prepare_shakespeare.py --tokenizer=gpt2")
    assert not is_made_by(folder, "prepare_text.py")


def damage(folder, name, change):
    path = os.path.join(folder, name)
    content = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(change(content))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("train.bin", lambda b: b[:-1], r"train\.bin is not the file that meta.json"),
        ("train.bin", lambda b: b[:-2], r"train\.bin is not the file that meta.json"),
        ("val.bin", lambda b: b"", r"val\.bin is not the file that meta.json"),
        ("train.bin", lambda b: b"\xff\xff" * (len(b) // 2), "not the file that meta.json"),
        ("meta.json", lambda b: b[:20], "is damaged"),
        ("meta.json", lambda b: b"[]", "is damaged"),
        ("meta.json", lambda b: b"{}", "is damaged"),
        ("meta.json", lambda b: b.replace(b"uint16", b"uint99"), "is damaged"),
        ("meta.json", lambda b: b.replace(b'"kind"', b'"sort"'), "unknown tokenizer"),
    ],
)
def test_damaged_files_are_one_sentence(numbers, name, change, sentence):
    folder = numbers()
    damage(folder, name, change)
    with pytest.raises(UserError, match=sentence):
        open_data(folder).batch("train", 0)


def test_ids_beyond_the_vocabulary_are_one_sentence(numbers):
    folder = numbers()
    meta = json.loads(Path(folder, "meta.json").read_text())
    del meta["fingerprints"]  # written by somebody else
    Path(folder, "meta.json").write_text(json.dumps(meta))
    damage(folder, "train.bin", lambda b: b"\xff\xff" * (len(b) // 2))
    with pytest.raises(UserError, match="id 65535"):
        open_data(folder).batch("train", 0)


def test_missing_and_short_data_are_one_sentence(numbers):
    folder = numbers(train=20)
    with pytest.raises(UserError, match=r"20 tokens, .* of 33: .* --block_size=19 or less"):
        open_data(folder, T=32)
    with pytest.raises(UserError, match="1 tokens, fewer than one sequence of 3: use a longer"):
        open_data(numbers(train=1), T=2)
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
    np.full(10**8 if split == "train" else 2000, 300, np.uint16).tofile(split + ".bin")
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
