"""The format on disk, written and read: data/NAME/{train,val}.bin + meta.json.

    with Writer("data/toy", ByteTokenizer(), source={"name": "toy.txt"}) as writer:
        writer.append("train", [104, 105, 10])
        writer.append("val", [104, 10])

    data/toy/train.bin   68 00 69 00 0a 00: token ids, little-endian uint16 (uint32 for large ones)
    data/toy/meta.json   {"tokenizer": {"kind": "byte"}, "dtype": "uint16", "row_length": null, ...}

With a mask, train.mask.bin holds one uint8 a token: 1 where the token is graded as a target.
"""

import contextlib
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from glob import glob

import numpy as np
import torch

from core import UserError
from core.runtime import Runtime, seed_at
from core.tokenizer import GPT2Tokenizer, Tokenizer, from_dict

SPLITS = ("train", "val")
NAMES = ["meta.json", *(f"{split}{end}" for split in SPLITS for end in (".bin", ".mask.bin"))]
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
RESIDENT_TOKENS = 2**26  # up to here a split lives on the device, as int32: 256 MiB
AGAIN = "run its prepare script again."


class Writer:
    """Writes a dataset in a stream; what stood in the folder stays until the new one is whole.

    row_length: None for a stream of text; N where each N tokens are an example of their own.
    source: where the text came from, kept in meta.json and shown by train.py.
    task: what the rows mean to whoever uses a model of them; a checkpoint keeps it.
    resumable: what `checkpoint` has secured outlives an interruption, and the next Writer of the
        same dataset goes on after it.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: Tokenizer,
        source: dict,
        row_length: int | None = None,
        task: dict | None = None,
        resumable: bool = False,
    ):
        self.folder, self.files, self.counts = folder, {}, dict.fromkeys(SPLITS, 0)
        self.resumable, self.progress = resumable, None  # what was given to `checkpoint` last
        self.meta = {
            "tokenizer": tokenizer.to_dict(),
            "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
            "row_length": row_length,
            "source": source,
        }
        self.meta |= {"task": task} if task else {}

    def __enter__(self) -> "Writer":
        os.makedirs(self.folder, exist_ok=True)
        if self.resumable and os.path.exists(self.temporary("progress")):
            with open(self.temporary("progress"), encoding="utf-8") as file:
                saved = json.load(file)
            if saved["meta"] == self.meta:
                self.progress, self.counts = saved["progress"], saved["counts"]
                for name, size in saved["sizes"].items():
                    self.files[name] = open(self.temporary(name), "r+b")
                    self.files[name].truncate(size)  # what came after the checkpoint comes again
                    self.files[name].seek(size)
        return self

    def append(self, split: str, ids, mask=None) -> None:
        """Add token ids, and as many zeros and ones if the dataset is masked."""
        self.write(f"{split}.bin", np.asarray(ids).astype(DTYPES[self.meta["dtype"]]))
        if mask is not None:
            assert len(mask) == len(ids), "one mask byte a token"
            self.write(f"{split}.mask.bin", np.asarray(mask, np.uint8))
        self.counts[split] += len(ids)

    def write(self, name: str, array: np.ndarray) -> None:
        if name not in self.files:
            self.files[name] = open(self.temporary(name), "wb")
        self.files[name].write(array.tobytes())

    def temporary(self, name: str) -> str:
        ending = "partial" if self.resumable else f"{os.getpid()}.tmp"
        return os.path.join(self.folder, f".{name}.{ending}")

    def checkpoint(self, progress) -> None:
        """Secure what was written so far; `progress` is how far that is, in the caller's terms."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self.files.items()}
        saved = {"meta": self.meta, "progress": progress, "counts": self.counts, "sizes": sizes}
        path = self.temporary("progress")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(saved, file)
        os.replace(path + ".new", path)

    def __exit__(self, kind, error, traceback) -> None:
        """Rename everything into place, or leave nothing. meta.json goes first: its counts betray
        a swap cut short, and a folder without it would pass for nanoGPT's."""
        try:
            if kind is None:
                self.put_in_place()
        except OSError as full:
            error = full
        for file in self.files.values():
            with contextlib.suppress(OSError):  # a full disk, reported already
                file.close()
        for name in NAMES:  # even one that was opened when the interruption came
            if os.path.exists(self.temporary(name)) and not (self.resumable and error):
                os.remove(self.temporary(name))
        if not error and os.path.exists(self.temporary("progress")):
            os.remove(self.temporary("progress"))
        if isinstance(error, OSError):
            raise UserError(
                f"{self.folder} can't be written ({error.strerror}); what stood there is kept."
            ) from error

    def put_in_place(self) -> None:
        counts = {f"{split}_tokens": count for split, count in self.counts.items()}
        meta = json.dumps({**self.meta, **counts}, ensure_ascii=False, indent=1)
        self.write("meta.json", np.frombuffer(meta.encode(), np.uint8))
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name in sorted(self.files, key=lambda name: name != "meta.json"):
            os.replace(self.temporary(name), os.path.join(self.folder, name))
        masks = [f"{split}.mask.bin" for split in SPLITS]
        for stale in {*masks} - {*self.files} & {*os.listdir(self.folder)}:
            os.remove(os.path.join(self.folder, stale))


def read_meta(folder: str) -> dict:
    """meta.json; for a folder of .bin files without one, what nanoGPT's files are."""
    path = os.path.join(folder, "meta.json")
    if not os.path.exists(path):
        source = {"name": "GPT-2 tokens, since there is no meta.json"}
        kind = GPT2Tokenizer.kind
        return dict(tokenizer={"kind": kind}, dtype="uint16", row_length=None, source=source)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from None


def ensure_prepared(folder: str, command: str, retry_fallback: bool) -> None:
    """Run the prepare command where the dataset is missing, or only stands in for a download.

    command: a prepare script of this repository and its options; "" if there is none.
    """
    wanted = os.path.join(folder, "train.bin")
    if os.path.exists(wanted):
        if not (retry_fallback and command and read_meta(folder)["source"].get("fallback")):
            return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if command:
        script, *options = shlex.split(command)
        subprocess.run([sys.executable, os.path.join(root, script), *options])
        if not os.path.exists(wanted):
            raise UserError(f"there is no {wanted}, and `python {command}` did not make it.")
    elif not os.path.exists(wanted):
        scripts = ", ".join(sorted(map(os.path.basename, glob(f"{root}/prepare_*.py"))))
        raise UserError(
            f"there is no {wanted}: put the train.bin and val.bin there that nanoGPT's "
            f"data/{os.path.basename(folder)}/prepare.py writes, or run one of {scripts} and add "
            "--dataset= with the name of the folder it makes."
        )


def share_rows(accumulation: int, batch_size: int, processes: int) -> tuple[int, int]:
    """The rows of a global batch, and how many of them a process computes at once.

    The same rows whatever the number of processes, which share them equally.
    """
    rows = accumulation * batch_size
    if rows % processes:
        fitting = [b for b in range(1, 2 * batch_size + processes) if not b % processes]
        raise UserError(
            f"gradient_accumulation_steps={accumulation} times batch_size={batch_size} rows can't "
            f"be shared by {processes} processes; these batch sizes can: {fitting}"
        )
    share = rows // processes
    return rows, max(n for n in range(1, batch_size + 1) if share % n == 0)


class Split:
    """One split of a dataset: its files, checked, and its tokens on the device if they are few."""

    def __init__(self, folder: str, name: str, meta: dict, vocab_size: int, device: torch.device):
        self.path, self.mask_path = (f"{folder}/{name}{suffix}" for suffix in (".bin", ".mask.bin"))
        self.masked, self.dtype = os.path.exists(self.mask_path), DTYPES[meta["dtype"]]
        self.vocab_size, self.device = vocab_size, device
        if not os.path.exists(self.path):
            raise UserError(f"{self.path} is not there: {AGAIN}")
        size = os.path.getsize(self.path)
        self.length = size // self.dtype.itemsize
        if size % self.dtype.itemsize:
            raise UserError(f"{self.path} has {size} bytes, no multiple of {self.dtype}: {AGAIN}")
        if meta.get(f"{name}_tokens", self.length) != self.length:
            expected = meta[f"{name}_tokens"]
            raise UserError(f"{self.path} has {self.length} tokens, not {expected}: {AGAIN}")
        if self.masked and os.path.getsize(self.mask_path) != self.length:
            raise UserError(f"{self.mask_path} has not one byte a token: {AGAIN}")
        self.tokens = self.mask = None
        if self.length <= RESIDENT_TOKENS:
            ids = np.fromfile(self.path, self.dtype).astype(np.int32)
            self.check(ids)
            self.tokens = torch.from_numpy(ids).to(device)
            if self.masked:
                self.mask = torch.from_numpy(np.fromfile(self.mask_path, np.uint8)).to(device)

    def check(self, ids: np.ndarray) -> None:
        if ids.size and (largest := int(ids.max())) >= self.vocab_size:
            raise UserError(
                f"{self.path} holds the id {largest}, but its vocabulary has {self.vocab_size}: "
                f"its meta.json belongs to other data; {AGAIN}"
            )

    def rows(self, starts: np.ndarray, T: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y, (len(starts), T) int64, y being x one token on, and -1 where not graded."""
        mask = None
        if self.tokens is not None:
            where = self.send(starts)[:, None] + torch.arange(T + 1, device=self.device)
            rows = self.tokens[where].long()
            mask = self.mask[where[:, 1:]] if self.masked else None
        else:  # maps opened for each batch let go of the pages read: memory does not grow
            where = starts[:, None] + np.arange(T + 1)
            ids = np.memmap(self.path, self.dtype, mode="r")[where]
            self.check(ids)
            rows = self.send(ids.astype(np.int64))
            if self.masked:
                mask = self.send(np.memmap(self.mask_path, np.uint8, mode="r")[where[:, 1:]])
        x, y = rows[:, :-1].contiguous(), rows[:, 1:].clone()  # a row alone is contiguous: a view
        return x, y if mask is None else y.masked_fill_(mask == 0, -1)

    def send(self, array: np.ndarray) -> torch.Tensor:
        """To the device; from pinned memory a GPU copies while it computes."""
        tensor = torch.from_numpy(array)
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)


class Dataset:
    """Rows of a dataset folder, as a function of (seed, step, row) alone.

    block_size: tokens a row of a stream; a dataset of rows brings its own length, at most that.
    batch_rows: rows of one global batch, of which each rank takes a slice.
    ramp: updates over which the batch grows in a line from a sixteenth to all of its rows, as for
        GPT-3, https://arxiv.org/abs/2005.14165, table 2.1.
    Raises UserError for whatever is wrong with the files.
    """

    def __init__(
        self, folder: str, block_size: int, batch_rows: int, seed: int, runtime: Runtime, ramp=0
    ):
        self.meta = meta = read_meta(folder)
        self.tokenizer, self.row_length = from_dict(meta["tokenizer"]), meta["row_length"]
        self.batch_rows, self.seed, self.runtime = batch_rows, seed, runtime
        growing = np.ceil(batch_rows * (1 + 15 * np.arange(ramp) / max(1, ramp)) / 16)
        self.ramp_rows = np.cumsum([0, *growing.astype(np.int64)])  # before update 0, 1, ... ramp
        self.T = self.row_length - 1 if self.row_length else block_size
        self.stride = self.row_length or self.T
        if self.T > block_size:
            raise UserError(f"the rows of {folder} need --block_size={self.T}, not {block_size}.")
        vocab_size = self.tokenizer.vocab_size
        self.splits = {n: Split(folder, n, meta, vocab_size, runtime.device) for n in SPLITS}
        self.masked = any(split.masked for split in self.splits.values())
        for split in self.splits.values():
            if split.length <= self.T:
                raise UserError(
                    f"{split.path} has {split.length} tokens, fewer than the {self.T + 1} of one "
                    "row: lower --block_size or prepare a longer text."
                )

    def rows_before(self, step: int) -> int:
        """How many rows all processes have trained on before update `step` (from 0)."""
        ramp = len(self.ramp_rows) - 1
        return int(self.ramp_rows[min(step, ramp)]) + max(0, step - ramp) * self.batch_rows

    def batch(self, split: str, step: int, whole=1) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows of the global batch of update `step` (from 0): x, y (rows, T) int64.

        Their number is a multiple of `whole`, and not 0: rows that are not graded fill it up.
        """
        first, last = self.rows_before(step), self.rows_before(step + 1)
        rank, processes = self.runtime.rank, self.runtime.world_size
        begin, end = (first + (last - first) * r // processes for r in (rank, rank + 1))
        starts = self.shuffled_starts(split, np.arange(begin, end))
        filling = max(whole, -(-len(starts) // whole) * whole) - len(starts)
        x, y = self.splits[split].rows(np.pad(starts, (0, filling)), self.T)
        y[end - begin :] = -1
        return x, y

    def graded(self, y: torch.Tensor, step: int) -> float:
        """How many tokens of update `step`'s global batch are graded, y being this rank's."""
        if self.masked:
            return max(1.0, self.runtime.sum((y >= 0).sum())[0])  # few rows may have none
        return (self.rows_before(step + 1) - self.rows_before(step)) * self.T

    def bytes_per_token(self, split: str) -> float:
        """Bytes of UTF-8 that a token of a split stands for in the mean."""
        data, lengths, total = self.splits[split], self.tokenizer.byte_lengths(), 0
        ids = np.memmap(data.path, data.dtype, mode="r")
        for first in range(0, len(ids), 2**20):
            total += int(lengths[ids[first : first + 2**20]].sum())
        return total / len(ids)

    def shuffled_starts(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Where those rows of the endless shuffled order start: epochs without replacement."""
        length, T = self.splits[split].length, self.T
        if self.row_length:
            count, phases = length // self.row_length, 1
        else:  # a row fewer than fit, so that each epoch can cut the text at another phase
            count = max(1, (length - T) // T)
            phases = min(T, length - count * T)
        starts = np.empty_like(rows)
        for epoch in np.unique(rows // count):
            seed, here = seed_at(self.seed, int(epoch)), rows // count == epoch
            starts[here] = (
                seed % phases + epoch_order(seed, count)[rows[here] % count] * self.stride
            )
        return starts

    def evaluation(
        self, split: str, rows: int, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's share of a split in batches (x, y), (batch_size, T), as many on every rank.

        The whole split where it fits in so many rows, else rows evenly spaced over it. Each token
        is a target once: where rows overlap or only fill up the last batch, y is -1.
        """
        data = self.splits[split]
        # a row's last token is only a target, unless rows are examples of their own
        count = data.length // self.stride if self.row_length else -(-(data.length - 1) // self.T)
        rows = min(rows, count)
        share = -(-rows // self.runtime.world_size)
        firsts = np.arange(rows) * count // rows * self.stride
        firsts = firsts[self.runtime.rank * share :][:share]
        for k in range(0, share, batch_size):
            wanted = firsts[k : k + batch_size]
            # every batch has one shape, for compilers: the last row of a stream starts earlier
            # instead of being short, and the places left in the last batch are not graded
            starts = np.zeros(batch_size, np.int64)
            starts[: len(wanted)] = np.minimum(wanted, data.length - 1 - self.T)
            x, y = data.rows(starts, self.T)
            y[len(wanted) :] = -1
            for row in np.flatnonzero(starts[: len(wanted)] < wanted):
                y[row, : wanted[row] - starts[row]] = -1
            yield x, y


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, count: int) -> np.ndarray:
    """A permutation of an epoch's rows, kept while batches are drawn from it."""
    return np.random.default_rng(seed).permutation(count)
