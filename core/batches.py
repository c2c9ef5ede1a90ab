"""Which rows of a dataset an update reads, and an evaluation: functions of seed, step and rank.

    data = Batches("data/toy", block_size=64, batch_rows=32, seed=1337, runtime=run)
    x, y = data.batch("train", step)  # this rank's rows, y being x one token on

Nothing is remembered from one batch to the next, so a resumed run reads on where it stopped, and
any number of processes share the rows of one.
"""

import functools
from collections.abc import Iterator

import numpy as np
import torch

from core import UserError
from core.dataset import SPLITS, Split, read_meta
from core.runtime import Runtime, seed_at
from core.tokenizer import from_dict


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


class Batches:
    """Rows of a dataset folder, as a function of (seed, step, row) alone.

    block_size: tokens a row of a stream; a dataset of rows brings its own length, at most that.
    batch_rows: rows of one global batch, of which each rank takes a slice.
    ramp: updates over which the batch grows in a line from a sixteenth to all of its rows, as for
        GPT-3, https://arxiv.org/abs/2005.14165, table 2.1. It does so by sixteenths, since matrix
        libraries prepare for each new shape.
    Raises UserError for whatever is wrong with the files.
    """

    def __init__(
        self, folder: str, block_size: int, batch_rows: int, seed: int, runtime: Runtime, ramp=0
    ):
        self.meta = meta = read_meta(folder)
        self.tokenizer, self.row_length = from_dict(meta["tokenizer"]), meta["row_length"]
        self.batch_rows, self.seed, self.runtime = batch_rows, seed, runtime
        sixteenths = 1 + 15 * np.arange(ramp) // max(1, ramp)
        growing = np.ceil(batch_rows * sixteenths / 16)
        self.ramp_rows = np.cumsum([0, *growing.astype(np.int64)])  # before update 0, 1, ... ramp
        self.T = self.row_length - 1 if self.row_length else block_size
        self.stride = self.row_length or self.T
        if self.T > block_size:
            raise UserError(f"the rows of {folder} need --block_size={self.T}, not {block_size}.")
        vocab_size = self.tokenizer.vocab_size
        self.splits = {n: Split(folder, n, meta, vocab_size, runtime.device) for n in SPLITS}
        self.masked = any(split.masked for split in self.splits.values())
        self.answers = self.masked and self.row_length is not None  # a row asks for one
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
