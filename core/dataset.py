"""The format on disk, written and read: data/NAME/{train,val}.bin + meta.json.

    with Writer("data/toy", ByteTokenizer(), source={"name": "toy.txt"}) as writer:
        writer.append("train", [104, 105, 10])
        writer.append("val", [104, 10])

    data/toy/train.bin   68 00 69 00 0a 00: token ids, little-endian uint16 (uint32 for large ones)
    data/toy/meta.json   {"tokenizer": {"kind": "byte"}, "dtype": "uint16", "row_length": null, ...}

With a mask, train.mask.bin holds one uint8 a token: 1 where the token is graded as a target.
"""

import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from glob import glob

import numpy as np
import torch

from core import UserError
from core.runtime import Runtime, seed_at
from core.tokenizer import GPT2Tokenizer, Tokenizer, from_dict

SPLITS = ("train", "val")
RESIDENT_TOKENS = 2**26  # up to here a split lives on the device, as int32: 256 MiB


class Writer:
    """Writes a dataset in a stream; what stood in the folder stays until the new one is whole.

    row_length: None for one stream of text; N where each N tokens are an example of their own.
    source: where the text came from, kept in meta.json and shown by train.py.
    """

    def __init__(self, folder: str, tokenizer: Tokenizer, source: dict, row_length=None):
        self.folder = folder
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
        self.meta = {
            "tokenizer": tokenizer.to_dict(),
            "dtype": "uint16" if self.dtype.itemsize == 2 else "uint32",
            "row_length": row_length,
            "source": source,
        }
        self.counts = dict.fromkeys(SPLITS, 0)
        self.files: dict = {}

    def __enter__(self) -> "Writer":
        os.makedirs(self.folder, exist_ok=True)
        return self

    def append(self, split: str, ids: Sequence[int] | np.ndarray, mask=None) -> None:
        """Add tokens, and a mask of as many zeros and ones if the dataset has one."""
        self.file(f"{split}.bin").write(np.asarray(ids).astype(self.dtype).tobytes())
        if mask is not None:
            assert len(mask) == len(ids), "one mask byte a token"
            self.file(f"{split}.mask.bin").write(np.asarray(mask, np.uint8).tobytes())
        self.counts[split] += len(ids)

    def file(self, name: str):
        if name not in self.files:
            self.files[name] = open(self.temporary(name), "wb")
        return self.files[name]

    def temporary(self, name: str) -> str:
        return os.path.join(self.folder, f".{name}.{os.getpid()}.tmp")

    def __exit__(self, kind, error, traceback) -> None:
        try:
            for file in self.files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            if kind is None:
                self.publish()
        finally:
            for name in [*self.files, "meta.json"]:
                if os.path.exists(self.temporary(name)):
                    os.remove(self.temporary(name))

    def publish(self) -> None:
        """Rename everything into place. meta.json goes first: its counts betray a half-made swap,
        and the folder never looks like nanoGPT's, which has no meta.json."""
        meta = {**self.meta, **{f"{split}_tokens": n for split, n in self.counts.items()}}
        with open(self.temporary("meta.json"), "w", encoding="utf-8") as file:
            json.dump(meta, file, ensure_ascii=False, indent=1)
        for name in ["meta.json", *self.files]:
            os.replace(self.temporary(name), os.path.join(self.folder, name))
        for split in SPLITS:  # masks of an earlier dataset grade nothing here
            stale = os.path.join(self.folder, f"{split}.mask.bin")
            if f"{split}.mask.bin" not in self.files and os.path.exists(stale):
                os.remove(stale)


def read_meta(folder: str) -> dict:
    """meta.json; for a folder of .bin files without one, what nanoGPT's files are."""
    path = os.path.join(folder, "meta.json")
    if not os.path.exists(path):
        return {
            "tokenizer": GPT2Tokenizer().to_dict(),
            "dtype": "uint16",
            "row_length": None,
            "source": {"name": "GPT-2 tokens without a meta.json"},
        }
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run its prepare script again.") from None


def ensure_prepared(folder: str, command: str, retry_fallback: bool) -> None:
    """Run the prepare command where the dataset is missing, or only stands in for a download.

    command: a prepare script of this repository and its options; "" if there is none.
    """
    wanted = os.path.join(folder, "train.bin")
    there = os.path.exists(wanted)
    if there and not (retry_fallback and read_meta(folder)["source"].get("fallback")):
        return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if command:
        script, *options = shlex.split(command)
        subprocess.run([sys.executable, os.path.join(root, script), *options])
        if os.path.exists(wanted):
            return
        raise UserError(f"there is no {wanted}, and `python {command}` did not make it.")
    scripts = ", ".join(sorted(os.path.basename(p) for p in glob(f"{root}/prepare_*.py")))
    raise UserError(
        f"there is no {wanted}: put train.bin and val.bin there, as nanoGPT's "
        f"data/{os.path.basename(folder)}/prepare.py writes them, or run one of {scripts} and "
        "train on what it makes with --dataset=NAME."
    )


class Split:
    """One split of a dataset: its files, checked, and its tokens on the device if they are few."""

    def __init__(self, folder: str, name: str, meta: dict, vocab_size: int, device: torch.device):
        self.path = os.path.join(folder, f"{name}.bin")
        self.mask_path = os.path.join(folder, f"{name}.mask.bin")
        self.masked = os.path.exists(self.mask_path)
        self.dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[meta["dtype"]])
        self.vocab_size, self.device = vocab_size, device
        self.check_files(meta.get(f"{name}_tokens"))
        self.tokens = self.mask = None
        if self.length <= RESIDENT_TOKENS:
            ids = np.fromfile(self.path, self.dtype).astype(np.int32)
            self.check_ids(ids)
            self.tokens = torch.from_numpy(ids).to(device)
            if self.masked:
                self.mask = torch.from_numpy(np.fromfile(self.mask_path, np.uint8)).to(device)

    def check_files(self, expected: int | None) -> None:
        again = "run the prepare script of this dataset again."
        if not os.path.exists(self.path):
            raise UserError(f"{self.path} is not there: {again}")
        size = os.path.getsize(self.path)
        self.length = size // self.dtype.itemsize
        if size % self.dtype.itemsize:
            raise UserError(f"{self.path} has {size} bytes, no multiple of {self.dtype}: {again}")
        if expected is not None and self.length != expected:
            raise UserError(
                f"{self.path} has {self.length} tokens, its meta.json says {expected}: {again}"
            )
        if self.masked and os.path.getsize(self.mask_path) != self.length:
            raise UserError(f"{self.mask_path} must have a byte for each token: {again}")

    def check_ids(self, ids: np.ndarray) -> None:
        if ids.size and (largest := int(ids.max())) >= self.vocab_size:
            raise UserError(
                f"{self.path} holds the id {largest}, outside its vocabulary of "
                f"{self.vocab_size}: its meta.json belongs to other data; prepare it again."
            )

    def rows(self, starts: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y, (len(starts), length) int64, y being x one token on and -1 where not graded."""
        if self.tokens is not None:
            where = self.send(torch.from_numpy(starts))[:, None]
            where = where + torch.arange(length + 1, device=self.device)
            rows = self.tokens[where].long()
            mask = self.mask[where[:, 1:]] if self.mask is not None else None
        else:
            rows, mask = self.read(starts[:, None] + np.arange(length + 1))
        x, y = rows[:, :-1].contiguous(), rows[:, 1:]
        return x, y.masked_fill(mask == 0, -1) if mask is not None else y.contiguous()

    def read(self, where: np.ndarray):
        # A map opened for each batch lets go of the pages read: resident memory does not grow.
        ids = np.memmap(self.path, self.dtype, mode="r")[where]
        self.check_ids(ids)
        rows = self.send(torch.from_numpy(ids.astype(np.int64)))
        if not self.masked:
            return rows, None
        mask = np.memmap(self.mask_path, np.uint8, mode="r")[where[:, 1:]]
        return rows, self.send(torch.from_numpy(mask))

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """To the device; from pinned memory a GPU copies while it computes."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class Dataset:
    """Rows of a dataset folder, as a function of (seed, step, row) alone.

    block_size: tokens a row of a stream; a dataset of rows brings its own.
    batch_rows: rows of one global batch, of which this rank takes an equal slice.
    Raises UserError for whatever is wrong with the files.
    """

    def __init__(self, folder: str, block_size: int, batch_rows: int, seed: int, runtime: Runtime):
        self.meta = read_meta(folder)
        self.tokenizer = from_dict(self.meta["tokenizer"])
        self.seed, self.batch_rows, self.runtime = seed, batch_rows, runtime
        self.row_length = self.meta["row_length"]
        self.T = self.row_length - 1 if self.row_length else block_size
        if self.T > block_size:
            raise UserError(f"the rows of {folder} need --block_size={self.T}, not {block_size}.")
        self.splits = {
            name: Split(folder, name, self.meta, self.tokenizer.vocab_size, runtime.device)
            for name in SPLITS
        }
        for split in self.splits.values():
            if split.length < self.T + 1:
                raise UserError(
                    f"{split.path} has {split.length} tokens, fewer than the {self.T + 1} of one "
                    "row: lower --block_size or prepare a longer text."
                )
        self.masked = any(split.masked for split in self.splits.values())

    def batch(self, split: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows of the global batch of update `step` (from 0): x, y (rows, T) int64."""
        share = self.batch_rows // self.runtime.world_size
        first = step * self.batch_rows + self.runtime.rank * share
        starts = self.shuffled_starts(split, np.arange(first, first + share))
        return self.splits[split].rows(starts, self.T)

    def shuffled_starts(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Where the given rows of the endless shuffled training order start in the split."""
        length = self.splits[split].length
        if self.row_length:
            count, phases = length // self.row_length, 1
            stride = self.row_length
        else:
            # one row fewer than fit, so that each epoch can cut the text at another phase
            count, stride = max(1, (length - self.T) // self.T), self.T
            phases = min(self.T, length - count * self.T)
        starts = np.empty_like(rows)
        for epoch in np.unique(rows // count):
            here = rows // count == epoch
            phase = seed_at(self.seed, int(epoch)) % phases
            order = epoch_order(seed_at(self.seed, int(epoch)), count)
            starts[here] = phase + order[rows[here] % count] * stride
        return starts

    def evaluation(
        self, split: str, rows: int, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's share of a split in batches (x, y), (batch_size, T), as many on every rank.

        The whole split where it fits in so many rows, else rows evenly spaced over it. Each token
        is a target once: where rows overlap or only fill up the last batch, y is -1.
        """
        data, ranks = self.splits[split], self.runtime.world_size
        stride = self.row_length or self.T
        # the last row of a stream is cut short, unless the text ends with it
        count = data.length // stride if self.row_length else -(-(data.length - 1) // stride)
        rows = min(rows, count)
        firsts = np.arange(rows) * count // rows * stride
        share = -(-rows // ranks)
        firsts = firsts[self.runtime.rank * share :][:share]
        for k in range(0, share, batch_size):
            wanted = firsts[k : k + batch_size]
            # all rows are full, so that a compiler sees one shape: the last starts early enough,
            # and the places left over in the last batch hold the first row, ungraded
            starts = np.zeros(batch_size, np.int64)
            starts[: len(wanted)] = np.minimum(wanted, data.length - 1 - self.T)
            x, y = data.rows(starts, self.T)
            y[len(wanted) :] = -1
            for row in np.flatnonzero(starts[: len(wanted)] < wanted):
                y[row, : wanted[row] - starts[row]] = -1
            yield x, y


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, count: int) -> np.ndarray:
    """A permutation of the rows of an epoch, kept while batches are drawn from it."""
    return np.random.default_rng(seed).permutation(count)
