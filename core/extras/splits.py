"""Which split a document is in, as a function of its text: equal documents are in the same one."""

import hashlib
from array import array
from collections.abc import Iterable

import numpy as np

from core import UserError


def measure(document: Iterable[str], seed: int) -> tuple[int, int, int]:
    """Of a document in pieces: a hash of 64 bits, its characters, its bytes of UTF-8."""
    digest, length, num_bytes = hashlib.blake2b(digest_size=8, key=str(seed).encode()), 0, 0
    for text in document:
        encoded = text.encode()
        digest.update(encoded)
        length += len(text)
        num_bytes += len(encoded)
    return int.from_bytes(digest.digest(), "little"), length, num_bytes


def validates(document: Iterable[str], val_fraction: float, seed: int) -> bool:
    """Whether one of very many documents validates, which are not all looked at beforehand."""
    return measure(document, seed)[0] < val_fraction * 2**64


def check_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        what = "validate" if val_fraction <= 0 else "train"
        raise UserError(
            f"--val_fraction={val_fraction:g} leaves nothing to {what} on: a number above 0 and "
            "below 1 is accepted, such as 0.1."
        )


class Splits:
    """How many characters of each document train; those after them validate.

    val_fraction of all characters validate. A document longer than a fifth of the smaller split is
    cut: its last characters validate. The others are whole: in the order of their hashes, each
    validates that brings the fraction nearer. may_cut=False: all are whole.
    """

    def __init__(self, val_fraction: float, seed: int, may_cut: bool = True):
        check_fraction(val_fraction)
        self.val_fraction, self.seed, self.may_cut = val_fraction, seed, may_cut
        self.hashes, self.lengths, self.num_bytes = array("Q"), array("q"), 0
        self.fractions: dict[str, float] = {}  # split -> its part of all characters, once chosen

    def add(self, document: Iterable[str]) -> None:
        """The next document, in pieces. An empty one is in no split."""
        hashed, length, num_bytes = measure(document, self.seed)
        self.hashes.append(hashed)
        self.lengths.append(length)
        self.num_bytes += num_bytes

    def choose(self) -> list[int]:
        """The characters of each document that train; UserError if a split would be empty."""
        lengths = np.array(self.lengths)
        target = self.val_fraction * lengths.sum()
        longest = min(target, lengths.sum() - target) / 5
        cut = (lengths > longest) & (lengths > 1) & self.may_cut
        rounding = 0.5 if len(lengths) > 1 else 0.0  # a single text is cut as nanoGPT cuts it
        train_lengths = (lengths * (1 - self.val_fraction) + rounding).astype(np.int64)
        train_lengths = np.where(cut, train_lengths.clip(1, lengths - 1), lengths)
        whole = np.flatnonzero(~cut & (lengths > 0))
        _, texts = np.unique(np.array(self.hashes)[whole], return_inverse=True)
        sizes = np.bincount(texts, lengths[whole])  # of each distinct text, all its copies
        chosen = fill(sizes, target - (lengths - train_lengths).sum())
        if not cut.any():
            if len(sizes) < 2:
                raise UserError(
                    f"the input has {lengths.sum()} characters and {len(sizes)} distinct texts: "
                    "too few to train on one part and to validate on another."
                )
            if chosen.all() or not chosen.any():
                chosen[sizes.argmin()] = not chosen.any()
        train_lengths[whole[chosen[texts]]] = 0
        train_fraction = float(train_lengths.sum() / lengths.sum())
        self.fractions = {"train": train_fraction, "val": 1 - train_fraction}
        return train_lengths.tolist()


def fill(sizes: np.ndarray, target: float) -> np.ndarray:
    """Which sizes are taken: in their order, each one that brings their sum nearer the target."""
    taken = np.zeros(len(sizes), bool)
    for i, size in enumerate(sizes.tolist()):
        if size < 2 * target:
            taken[i] = True
            target -= size
    return taken
