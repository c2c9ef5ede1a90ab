"""Text files opened: unpacked, decoded, and what is wrong with one said in a sentence."""

import codecs
import contextlib
import gzip
import io
import re
import shlex
import zlib
from collections.abc import Iterator
from typing import IO

from core import UserError

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BINARY = "binary"
LONGEST_LINE = 2**28  # characters; more is no text, but may be a small .gz that unpacks to it
DAMAGED = (gzip.BadGzipFile, zlib.error, EOFError)


@contextlib.contextmanager
def unpacked(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, a .gz file's unpacked; UserError if they cannot be."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            yield file
    except DAMAGED as error:
        raise UserError(f"{path} is damaged: {error}.") from None


@contextlib.contextmanager
def reading(path: str, encoding: str | None = None, **how) -> Iterator[IO[str]]:
    """The file opened as text without its byte order mark; UserError if it is in another encoding.

    encoding: the setting of this name; None for a script without one, which reads UTF-8.
    """
    with unpacked(path) as file:
        used = encoding_of(file.peek(4), encoding)
        try:
            yield io.TextIOWrapper(file, used, **how)
        except UnicodeError as error:
            raise wrong_encoding(path, used, encoding, error) from None


def lines(file: IO[str], path: str) -> Iterator[str]:
    """The lines of a file, as iterating gives them; UserError if one is endless."""
    number = 1
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path}, line {number}, has more than {LONGEST_LINE:,} characters.")
        yield line
        number += 1


def encoding_of(start: bytes, encoding: str | None) -> str:
    """The encoding of a file that starts so: its byte order mark says more than the setting."""
    for mark, marked in MARKS.items():
        if start.startswith(mark):
            return marked
    try:
        "".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        raise UserError(
            f"--encoding={encoding} is not known to Python: utf-8, gb18030, big5, shift_jis, "
            "cp1252 and utf-16 are."
        ) from None
    name = codecs.lookup(encoding or "utf-8").name
    return "utf-16-le" if name == "utf-16" else name  # as Windows writes it


def wrong_encoding(path: str, used: str, encoding: str | None, error: UnicodeError) -> UserError:
    """The sentence for a file that is not in the encoding used: its line, and what to do."""
    if used.startswith(("utf-16", "utf-32")):  # its lines are not found as bytes
        return UserError(f"{path} is not {used} text ({error.reason}): --encoding= names another.")
    used = used.removesuffix("-sig")
    number, bad_byte, sample = first_bad_line(path, used)
    likely = likely_encoding(sample)
    where = f"{path}, line {number}, is not {used.upper()} ({error.reason}, byte {bad_byte:#x})"
    if likely == BINARY:
        return UserError(f"{where}, and has zero bytes, as no text has; it is binary.")
    if likely == used:
        return UserError(f"{where}, though the rest looks like it: correct that line.")
    if encoding:
        return UserError(f"{where}; it looks like {likely}: add --encoding={likely}.")
    file, copy = shlex.quote(path), shlex.quote(f"{path}.utf8")
    return UserError(f"{where}: convert it, iconv -f {likely} -t utf-8 {file} > {copy}")


def first_bad_line(path: str, encoding: str) -> tuple[int, int, bytes]:
    """The number of the first line in another encoding, its wrong byte, and what tells which one:
    the last lines before that have more than ASCII, the line, and what follows."""
    before = b""
    with unpacked(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                return number, line[error.start], before + line + file.read(2**16)
            if not line.isascii():
                before = (before + line)[-(2**12) :]
    raise AssertionError(f"every line of {path} is {encoding}")


def likely_encoding(sample: bytes) -> str:
    """A guess at the encoding of bytes, by what is left of those beyond ASCII; or BINARY."""
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # every other byte is a zero
        if sample[first::2].count(0) > len(sample) / 8 and not sample[1 - first :: 2].count(0):
            return name
    if b"\0" in sample:
        return BINARY
    beyond_ascii = max(1, count_beyond_ascii(sample))
    if count_beyond_ascii(sample.decode("utf-8", "ignore").encode()) > 0.9 * beyond_ascii:
        return "utf-8"
    # Chinese has two such bytes per character, in the West an accented letter stands alone
    pairs = len(re.findall(rb"[\xa1-\xf7][\xa1-\xfe]", sample))
    return "gb18030" if 2 * pairs > 0.8 * beyond_ascii else "cp1252"


def count_beyond_ascii(sample: bytes) -> int:
    return sum(byte > 127 for byte in sample)


def begins_badly(path: str, encoding: str | None = None) -> str:
    """What the first bytes of a file look like, BINARY or an encoding; "" if they are text."""
    with unpacked(path) as file:
        start = file.read(4096)
    used = encoding_of(start, encoding)
    likely = likely_encoding(start)
    if likely == BINARY and "utf-16" not in used:
        return BINARY
    try:
        text = codecs.getincrementaldecoder(used)().decode(start)  # the end may cut a character
    except UnicodeDecodeError:
        text = "\0"
    return likely if "\0" in text else ""
