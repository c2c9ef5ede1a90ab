"""Which sequences of a dataset a step reads, and an evaluation: functions of seed, step and rank.

Nothing is remembered from one batch to the next, so that a resumed run reads on exactly, and any
number of processes share the sequences of one.
"""

import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core import UserError
from core.dataset import SPLITS, Split, read_meta
from core.distributed import RANK, WORLD_SIZE, all_reduce_sum
from core.tokenizer import from_dict


def split_batch(accumulation: int, batch_size: int, processes: int = WORLD_SIZE) -> tuple[int, int]:
    """The sequences of the global batch, for any number of processes, and of a micro-batch."""
    total = accumulation * batch_size
    if total % processes:
        raise UserError(
            f"gradient_accumulation_steps={accumulation} times batch_size={batch_size} is not "
            f"divisible by {processes} processes."
        )
    return total, max(n for n in range(1, batch_size + 1) if total // processes % n == 0)


class Batches:
    """Sequences of a dataset folder, as a function of (seed, step, sequence) alone.

    block_size: tokens per sequence of a stream; a dataset of examples brings its own length.
    batch_size: sequences of the global batch, of which each rank takes a slice.
    ramp: steps over which it grows by sixteenths, cf. https://arxiv.org/abs/2005.14165, table 2.1.
    """

    def __init__(self, folder, block_size, batch_size, seed, device, ramp=0):
        self.folder, self.meta = folder, read_meta(folder)
        self.tokenizer, self.row_length = from_dict(self.meta["tokenizer"]), self.meta["row_length"]
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.rank, self.world_size = RANK, WORLD_SIZE
        sixteenths = 1 + 15 * np.arange(ramp) // max(1, ramp)
        ramp_sizes = np.ceil(batch_size * sixteenths / 16).astype(np.int64)
        self.ramp_totals = np.cumsum([0, *ramp_sizes])  # before step 0, 1, ... ramp
        self.T = self.row_length - 1 if self.row_length else block_size
        if self.T > block_size:
            raise UserError(f"examples of {folder} need --block_size={self.T}, not {block_size}.")
        vocab_size = self.tokenizer.vocab_size
        self.splits = {name: Split(folder, name, self.meta, vocab_size) for name in SPLITS}
        # of the files by name, so that a resumed run can tell whether they are still the same
        self.fingerprints = {k: v for s in self.splits.values() for k, v in s.fingerprints.items()}
        self.masked = any(split.masked for split in self.splits.values())
        self.has_answers = self.masked and self.row_length is not None
        shortest = min(self.splits.values(), key=lambda split: split.length)
        if shortest.length <= self.T:
            raise UserError(
                f"{shortest.path} has {shortest.length} tokens, fewer than one sequence of "
                f"{self.T + 1}: use a longer text, or --block_size={shortest.length - 1} or less."
            )

    def sequences_before(self, step: int) -> int:
        """How many sequences all ranks together have trained on before `step` (from 0)."""
        ramp = len(self.ramp_totals) - 1
        return int(self.ramp_totals[min(step, ramp)]) + max(0, step - ramp) * self.batch_size

    def full_batches(self, step: int) -> float:
        """The same in full batches: `step`, unless the batch grows."""
        return self.sequences_before(step) / self.batch_size

    def batch(self, split: str, step: int, multiple: int = 1) -> tuple[Tensor, Tensor, float]:
        """This rank's sequences of the global batch of `step` (from 0): x, y (B, T) int64; and
        the targets of the whole global batch that are not ignored, at least 1.

        B is a multiple of `multiple`, the same on every rank: ignored sequences pad it. The targets
        are counted on the CPU: to read a number from a GPU is to wait for all its work.
        """
        first, last = self.sequences_before(step), self.sequences_before(step + 1)
        begin = first + (last - first) * self.rank // self.world_size
        most = -(-(last - first) // self.world_size)  # FSDP's ranks need as many micro-batches
        count = first + (last - first) * (self.rank + 1) // self.world_size - begin
        starts = self.shuffled_starts(split, begin + np.arange(count))
        padding = -(-most // multiple) * multiple - count
        x, y = self.splits[split].sequences(np.pad(starts, (0, padding)), self.T)
        y[count:] = -1
        targets = all_reduce_sum((y >= 0).sum())[0] if self.masked else (last - first) * self.T
        return self.to_device(x), self.to_device(y), max(1.0, targets)

    def per_token_and_byte(self, val_loss: float) -> dict[str, float]:
        """The validation loss as perplexity, and in bits per byte if the text's length is known."""
        figures = {"perplexity": math.exp(val_loss) if val_loss < 700 else math.inf}
        if num_bytes := self.meta["val_bytes"]:
            num_tokens = self.splits["val"].length
            figures["bits_per_byte"] = val_loss / math.log(2) * num_tokens / num_bytes
        return figures

    def to_device(self, array: np.ndarray) -> Tensor:
        """From pinned memory, which a GPU copies while it computes."""
        tensor = torch.from_numpy(array)
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)

    def shuffled_starts(self, split: str, sequences: np.ndarray) -> np.ndarray:
        """Where these sequences of the endless shuffled order start: epochs without replacement.

        A stream is read as a circle. An epoch leaves out the targets that do not fill a sequence,
        and the next one begins with them: all are as frequent, and cut at another phase each time.
        """
        length, stride = self.splits[split].length, self.row_length or self.T
        circle = length if self.row_length else length - 1  # its first token is no target
        count, left_out = divmod(circle, stride)
        shift = 0 if self.row_length else left_out or 1 + stride // 3
        starts = np.empty_like(sequences)
        for epoch in np.unique(sequences // count):
            here = sequences // count == epoch
            order = permutation(fold_in(self.seed, int(epoch)), count)[sequences[here] % count]
            starts[here] = (order * stride - epoch * shift) % circle
        return starts

    def evaluation(self, split: str, limit: int, batch_size: int) -> Iterator[tuple]:
        """This rank's part of a split in batches x, y (batch_size, T), as many on every rank.

        The whole split if it has at most `limit` sequences, else so many evenly spaced ones. Each
        token is a target once: y is -1 where sequences overlap and where they pad the last batch.
        """
        data, T = self.splits[split], self.T
        end = data.length - 1  # the last token of a stream is only a target
        count = data.length // self.row_length if self.row_length else -(-end // T)
        total = min(limit, count)
        per_rank = -(-total // self.world_size)
        wanted = np.arange(total) * count // total * (self.row_length or T)
        wanted = wanted[self.rank * per_rank :][:per_rank]
        batches = np.full((-(-per_rank // batch_size), batch_size), end)
        batches.flat[: len(wanted)] = wanted
        for chosen in batches:
            # one shape for all, for compilers: what would be short starts earlier
            starts = np.minimum(chosen, end - T)
            x, y = data.sequences(starts, T)
            y[np.arange(T) < (chosen - starts)[:, None]] = -1
            yield self.to_device(x), self.to_device(y)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, count: int) -> np.ndarray:
    """The order of an epoch, kept while batches are taken from it."""
    return np.random.default_rng(seed).permutation(count)


def fold_in(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such as (seed, step, rank): splitmix64, chained.

    Randomness is then a function of where it is used, not of what was sampled before.
    """
    mixed, mask = 0, (1 << 64) - 1
    for number in numbers:
        mixed = (mixed ^ number) + 0x9E3779B97F4A7C15 & mask
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
        mixed ^= mixed >> 31
    return mixed >> 1
