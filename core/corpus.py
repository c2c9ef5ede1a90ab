"""Text files of many kinds as documents, and documents as tokens, on all cores.

A document is a series of pieces of text, each short enough to lie in memory. They are cut where a
word ends, so that each gives the tokens that it would give in the whole.
"""

import contextlib
import csv
import ctypes
import gzip
import json
import multiprocessing
import os
import signal
import sys
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from glob import glob

import numpy as np

from core import UserError
from core.runtime import seed_at
from core.tokenizer import Tokenizer

PIECE = 2**20  # characters read at once
BATCH = 2**18  # characters that a worker is given at once
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def files(pattern: str) -> list[str]:
    """The files of a path, of a folder and its folders, or of a glob pattern, sorted.

    In a folder, hidden files and those that don't begin as UTF-8 text are left out.
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


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """What can go wrong with a file of text, as UserErrors."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}, byte {error.object[error.start]:#x}): "
            "convert it first, for example by iconv -f GB18030 -t UTF-8."
        ) from None
    except (OSError, EOFError, csv.Error) as error:  # EOFError is gzip's
        raise UserError(f"{path} can't be read: {error}.") from None


def documents(paths: Iterable[str], column: str) -> Iterator[Iterable[str]]:
    """Every document that is not empty: of .jsonl, .csv and .parquet files each row's `column`,
    of any other the whole file. Such a one has to be read before the next is asked for."""
    for path in paths:
        kind = path.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        if kind == "parquet":
            yield from map(pieces, parquet_rows(path, column))
            continue
        opened = gzip.open if path.endswith(".gz") else open
        with (
            reading(path),
            opened(path, "rt", encoding="utf-8-sig", newline=NEWLINES.get(kind)) as file,
        ):
            if kind in ROWS:
                yield from map(pieces, ROWS[kind](file, path, column))
            elif first := file.read(PIECE):
                yield cut(checked(first, file, path))


def checked(first: str, file, path: str) -> Iterator[str]:
    """The rest of a file after its first piece, read while `documents` is waiting."""
    block = first
    while block:
        if "\0" in block:
            raise UserError(f"{path} is a binary file: it holds zero bytes, as no text does.")
        yield block
        with reading(path):
            block = file.read(PIECE)


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """The same text, cut between a word and the white space after it.

    No token of GPT-2's spans that place: its pattern begins white space anew, and words with the
    one space before them.
    """
    held = ""
    for block in blocks:
        held += block
        end = word_end(held)
        if not end and len(held) > 16 * PIECE:  # white space is not everyone's habit
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


def pieces(text: str) -> Iterable[str]:
    if len(text) <= 2 * PIECE:
        return (text,)
    return cut(text[i : i + PIECE] for i in range(0, len(text), PIECE))


def jsonl_rows(file, path: str, column: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}.") from None
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{path}, line {number} has no text {column!r}: --column names one of {there}."
            )
        if text:
            yield text


def csv_rows(file, path: str, column: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)
    rows = csv.DictReader(file)
    if column not in (rows.fieldnames or ()):
        there = ", ".join(rows.fieldnames or ())
        raise UserError(f"{path} has no column {column!r}: --column names one of {there}.")
    for row in rows:
        if row[column]:
            yield row[column]


def plain(text: str) -> str:
    """Text on one line in its compatibility form, NFKC: a full-width comma is a comma, too."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def labelled_rows(path: str, column: str, label_column: str) -> list[tuple[str, str | None]]:
    """Each row of a CSV file as its text, made plain, and its label.

    column: of the texts, "" = the first that is not label_column. Labels are None without theirs.
    """
    csv.field_size_limit(sys.maxsize)
    with reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        there = list(rows.fieldnames or ())
        column = column or next((c for c in there if c != label_column), "text")
        if column not in there:
            raise UserError(
                f"{path} has no column {column!r}: --column names one of {', '.join(there)}."
            )
        labelled = label_column in there
        return [
            (
                plain(r[column] or ""),
                (r[label_column] or "").strip() if labelled else None,
            )
            for r in rows
        ]


def parquet_rows(path: str, column: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"reading {path} needs `pip install pyarrow`.") from None
    try:
        with parquet.ParquetFile(path) as file:
            if column not in (there := file.schema_arrow.names):
                raise UserError(
                    f"{path} has no column {column!r}: --column names one of {', '.join(there)}."
                )
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from (text for text in batch.column(0).to_pylist() if text)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is damaged or no parquet file: {error}.") from None


ROWS = {"jsonl": jsonl_rows, "ndjson": jsonl_rows, "csv": csv_rows}
NEWLINES = {"csv": ""}  # the csv module tells line breaks in quotes from others itself


def split_of(document: int, val_share: float, seed: int) -> str:
    """The split of a document by its number: the first validates, the second trains, the others
    fall by chance, so that neither split is empty."""
    if document < 2:
        return ("val", "train")[document]
    return "val" if seed_at(seed, document) < val_share * 2**63 else "train"


def with_end(document: Iterable[str], split: str) -> Iterator[tuple[str, str, bool]]:
    """Its pieces as `encoded` wants them, the last of which the end-of-text token follows."""
    held = ""
    for text in document:
        if held:
            yield split, held, False
        held = text
    yield split, held, True


def encoded(
    texts: Iterable[tuple[str, str, bool]], tokenizer: Tokenizer
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Of pieces (split, text, whether a document ends here), in their order, the ids by split and
    the bytes of UTF-8 that they came from."""
    tokenizer.encode_array("")  # loads what it loads late, once for all
    with workers(tokenizer) as pool:
        waiting: deque = deque()
        for batch in batches(texts):
            waiting.append(pool.submit(encode_batch, batch))
            if len(waiting) > 2 * CORES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches(texts: Iterable[tuple[str, str, bool]]) -> Iterator[list[tuple[str, str, bool]]]:
    batch, size = [], 0
    for item in texts:
        batch.append(item)
        size += len(item[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def workers(tokenizer: Tokenizer) -> Executor:
    """As many as there are cores, each to run `encode_batch` by that tokenizer: processes on Linux,
    a third faster than threads, which take turns at all but tiktoken's own work."""
    if sys.platform != "linux":  # elsewhere a process starts by running the script again
        return ThreadPoolExecutor(CORES, initializer=become_worker, initargs=(tokenizer, False))
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(CORES, fork, become_worker, (tokenizer, True))
    # Python ignores what is raised by its hooks around a fork, so a Ctrl-C has to wait for the end.
    # Blocking it is not enough: any other thread would take it, and the main one raise it at once.
    came = []
    ending = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda n, _: came.append(n)) for number in ending}
    pool.submit(int)  # forks them all
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)
    return pool


def become_worker(tokenizer: Tokenizer, process: bool) -> None:
    global worker_tokenizer
    worker_tokenizer = tokenizer
    if process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what interrupts the script ends the pool too
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: so does what kills it


def encode_batch(batch: list[tuple[str, str, bool]]) -> tuple[dict[str, np.ndarray], int]:
    tokenizer, parts = worker_tokenizer, {}
    for split, text, ends in batch:
        ids = parts.setdefault(split, [])
        ids.append(tokenizer.encode_array(text))
        if ends:
            ids.append(np.array([tokenizer.end_token]))
    size = sum(len(text.encode()) for _, text, _ in batch)
    return {split: np.concatenate(ids) for split, ids in parts.items()}, size
