"""Text files of many kinds as documents, and documents as tokens, on all cores.

A document is a series of pieces of text, each short enough for memory. They are cut where a word
ends, so that each gives the tokens that it would give in the whole.
"""

import functools
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import numpy as np

from core import UserError
from core.extras import tables
from core.extras.tables import PIECE
from core.extras.textfile import BINARY, begins_badly, reading
from core.tokenizer import Tokenizer

WORD_END = re.compile(r"(?<=\S)[ \n]")
BATCH = 2**18  # characters that a thread is given at once
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Piece = tuple[str, str, bool]  # split, text, whether a document ends here


def files(pattern: str, encoding: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The files of a path, of a folder and its folders, or of a glob pattern, sorted.

    In a folder, those that do not begin as text are left out: they come as {path: what they look
    like}. Hidden files are neither.
    """
    found, left_out = [], {}
    if os.path.isdir(pattern):
        for path in walk(pattern):
            if looks := "" if path.endswith(".parquet") else begins_badly(path, encoding):
                left_out[path] = looks
            else:
                found.append(path)
    elif os.path.isfile(pattern):
        found = [pattern]
    else:
        found = sorted(path for path in glob(pattern, recursive=True) if os.path.isfile(path))
    if left_out and not found:
        raise UserError(f"--input={pattern} has no text files. {describe(left_out)}")
    if not found:
        raise UserError(f"--input={pattern}: there is no such file, nor a folder of text files.")
    return found, left_out


def walk(folder: str) -> Iterator[str]:
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f[0] != "." and f != "__pycache__")
        yield from (os.path.join(path, name) for name in sorted(names) if name[0] != ".")


def describe(left_out: dict[str, str]) -> str:
    """The files that are left out, as a sentence that names some of them."""
    names = [f"{os.path.basename(path)} ({looks})" for path, looks in left_out.items()]
    if len(names) > 5:
        names[5:] = [f"{len(names) - 5:,} more"]
    likely = next((looks for looks in left_out.values() if looks != BINARY), "")
    hint = f"; --encoding={likely} takes those that are {likely}" if likely else ""
    return f"left out: {len(left_out):,} files, {', '.join(names)}{hint}."


def documents(
    paths: Iterable[str], column: str, encoding: str | None = None
) -> Iterator[Iterable[str]]:
    """Every document as pieces of text: the `column` of each row of a table, else the whole file,
    which has to be read before the next document is asked for. Empty ones are there, too."""
    for path in paths:
        if texts_of_rows := tables.rows_of(path, encoding):
            yield from map(cut_long, texts_of_rows(path, column, encoding))
        else:
            yield cut(text_blocks(path, encoding))


def text_blocks(path: str, encoding: str | None) -> Iterator[str]:
    with reading(path, encoding) as file:
        while block := file.read(PIECE):
            if "\0" in block:
                looks = begins_badly(path, encoding) or BINARY
                hint = "" if looks == BINARY else f": add --encoding={looks}"
                raise UserError(f"{path} has zero bytes, as no text has; it is {looks}{hint}.")
            yield block


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """The same text, cut between a word and the white space after it.

    No token of GPT-2's spans that place: its pattern begins white space anew, and words with the
    one space before them.
    """
    held = ""
    for block in blocks:
        held += block
        end = word_end(held)
        if not end and len(held) > 16 * PIECE:  # not every language has white space
            end = len(held)
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def word_end(text: str) -> int:
    """Where the last white space that follows a word begins, 0 if none does."""
    tail = 2**12  # characters that are looked at: most often a word ends there
    while True:
        start = max(0, len(text) - tail)
        if ends := [match.start() for match in WORD_END.finditer(text, start)]:
            return ends[-1]
        if start == 0:
            return 0
        tail *= 2


def cut_long(text: str) -> Iterable[str]:
    """A text as one piece, or as several if it is long."""
    if len(text) <= 2 * PIECE:
        return (text,)
    return cut(text[i : i + PIECE] for i in range(0, len(text), PIECE))


def split_pieces(document: Iterable[str], train_length: int, with_end: bool) -> Iterator[Piece]:
    """Its pieces as `encoded` takes them: the first train_length characters train, the others
    validate. with_end: the end-of-text token follows in each split that has a part of it."""
    sizes = Counter()
    for text in document:
        left = max(0, train_length - sizes.total())
        for split, part in (("train", text[:left]), ("val", text[left:])):
            if part:
                sizes[split] += len(part)
                yield split, part, False
    if with_end:
        yield from ((split, "", True) for split in sizes)


def encoded(
    pieces: Iterable[Piece], tokenizer: Tokenizer
) -> Iterator[tuple[dict[str, np.ndarray], Counter]]:
    """The tokens of pieces in their order, as {split: ids}, {split: bytes of UTF-8} per batch.

    By a thread per core, since tiktoken works without Python's lock: 1.6 times as fast on two.
    """
    tokenizer.encode("")  # loads what it loads late, once for all threads
    encode = functools.partial(encode_batch, tokenizer)
    return in_threads(encode, batches(pieces), CORES, ahead=2 * CORES)


def in_threads(function: Callable, items: Iterable, threads: int, ahead: int) -> Iterator:
    """The function's result for each item, in order; threads compute `ahead` of them early."""
    pool, waiting = ThreadPoolExecutor(threads), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error they are not needed


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Lists of pieces, of about BATCH characters together."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_batch(tokenizer: Tokenizer, batch: list[Piece]) -> tuple[dict, Counter]:
    ids, num_bytes = {}, Counter()
    for split, text, ends in batch:
        parts = ids.setdefault(split, [])
        if text or not parts:
            parts.append(tokenizer.encode(text))
        if ends:
            parts.append(np.array([tokenizer.end_token], parts[-1].dtype))
        num_bytes[split] += len(text.encode())
    return {split: np.concatenate(parts) for split, parts in ids.items()}, num_bytes
