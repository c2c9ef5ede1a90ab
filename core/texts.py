"""Text files of many kinds as documents, and documents as tokens, on all cores.

A document is a series of pieces of text, each short enough for memory. They are cut where a word
ends, so that each gives the tokens that it would give in the whole.
"""

import contextlib
import csv
import functools
import gzip
import itertools
import json
import os
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import numpy as np

from core import UserError
from core.batches import fold_in
from core.tokenizer import Tokenizer

PIECE = 2**20  # characters read at once
BATCH = 2**18  # characters that a thread is given at once
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
STRINGS = ("string", "large_string", "string_view")  # parquet's types of text
Piece = tuple[str, str, bool]  # split, text, whether a document ends here


def files(pattern: str) -> list[str]:
    """The files of a path, of a folder and its folders, or of a glob pattern, sorted.

    In a folder, hidden files and those that do not begin as UTF-8 text are left out.
    """
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        found = []
        for folder, folders, names in os.walk(pattern):
            folders[:] = sorted(f for f in folders if f[0] != "." and f != "__pycache__")
            paths = (os.path.join(folder, name) for name in sorted(names) if name[0] != ".")
            found += [path for path in paths if is_packed(path) or begins_as_text(path)]
    else:
        found = sorted(path for path in glob(pattern, recursive=True) if os.path.isfile(path))
    if not found:
        raise UserError(f"--input={pattern}: there is no such file, nor a folder of text files.")
    return found


def is_packed(path: str) -> bool:
    return path.endswith((".gz", ".parquet"))


def begins_as_text(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(4096)
    with contextlib.suppress(UnicodeDecodeError):
        start[:-4].decode("utf-8")  # the last bytes may be a part of a character
        return b"\0" not in start
    return False


def documents(paths: Iterable[str], column: str) -> Iterator[Iterable[str]]:
    """Every document that is not empty: in .jsonl, .csv and .parquet files the `column` of each
    row, else the whole file, which has to be read before the next document is asked for."""
    for path in paths:
        kind = path.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        if kind in TABLES:
            yield from (cut_long(text) for text in TABLES[kind](path, column) if text)
            continue
        blocks = text_blocks(path)
        if first := next(blocks, ""):
            yield cut(itertools.chain([first], blocks))


@contextlib.contextmanager
def reading(path: str, **how) -> Iterator:
    """The file opened as UTF-8 text, unpacked; what can be wrong with it is a UserError."""
    opened = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", **how) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}, byte {error.object[error.start]:#x}): "
            "convert it first, for example by iconv -f GB18030 -t UTF-8."
        ) from None
    except (gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}.") from None


def text_blocks(path: str) -> Iterator[str]:
    with reading(path) as file:
        while block := file.read(PIECE):
            if "\0" in block:
                raise UserError(f"{path} is a binary file: it holds zero bytes, as no text does.")
            yield block


def jsonl_rows(path: str, column: str) -> Iterator[str]:
    with reading(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON: {error}.") from None
            row = row if isinstance(row, dict) else {}
            text = row.get(column)
            if not isinstance(text, str):
                raise no_column(f"{path}, line {number}", column, row)
            yield text.encode(errors="replace").decode()  # JSON can spell half a character


def csv_rows(path: str, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # the largest that Windows accepts
    with reading(path, newline="") as file:  # csv tells line breaks in quotes from others itself
        rows = csv.DictReader(file)
        if column not in (rows.fieldnames or ()):
            raise no_column(path, column, rows.fieldnames or ())
        for row in rows:
            yield row[column] or ""  # a short row has none


def parquet_rows(path: str, column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            texts = [field.name for field in file.schema_arrow if str(field.type) in STRINGS]
            if column not in texts:
                raise no_column(path, column, texts)
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no parquet file: {error}.") from None


def no_column(where: str, column: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{where} has no text {column!r}: --column names one of {', '.join(names) or 'none'}."
    )


TABLES = {"jsonl": jsonl_rows, "ndjson": jsonl_rows, "csv": csv_rows, "parquet": parquet_rows}


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
    at = len(text)
    while (at := max(text.rfind(" ", 0, at), text.rfind("\n", 0, at))) > 0:
        if not text[at - 1].isspace():
            return at
    return 0


def cut_long(text: str) -> Iterable[str]:
    """A text as one piece, or as several if it is long."""
    if len(text) <= 2 * PIECE:
        return (text,)
    return cut(text[i : i + PIECE] for i in range(0, len(text), PIECE))


def split_of(document: int, val_fraction: float, seed: int) -> str:
    """The split of a document by its number: 0 validates and 1 trains, so that neither split is
    empty; all others fall by chance."""
    if document < 2:
        return ("val", "train")[document]
    return "val" if fold_in(seed, document) < val_fraction * 2**63 else "train"


def with_end(document: Iterable[str], split: str) -> Iterator[Piece]:
    """Its pieces as `encoded` takes them; the end-of-text token follows the last."""
    held = ""
    for text in document:
        if held:
            yield split, held, False
        held = text
    yield split, held, True


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
        pool.shutdown(cancel_futures=True)  # after an error the others are not needed


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
        parts.append(tokenizer.encode(text))
        if ends:
            parts.append(np.array([tokenizer.end_token], parts[-1].dtype))
        num_bytes[split] += len(text.encode())
    return {split: np.concatenate(parts) for split, parts in ids.items()}, num_bytes
