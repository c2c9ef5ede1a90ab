"""Tables of texts: the rows of .jsonl, .json, .csv, .tsv and .parquet files.

Each reader gives the text that `column` has in each row, "" where it has none. A number is taken
as it is written, as in a .csv file; in parquet the column has to be one of texts.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from core import UserError
from core.extras.textfile import LONGEST_LINE, lines, reading

PIECE = 2**20  # characters read at once
LONGEST_ARRAY = 2**30  # characters; its objects take several times as much memory
STRINGS = ("string", "large_string", "string_view")  # parquet's types of text
Rows = Iterator[tuple[str, object]]  # where it is, the row


def rows_of(path: str, encoding: str | None = None) -> Callable | None:
    """The function (path, column, encoding) -> texts for this kind of file; None if it is text."""
    kind = path.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind != "json":
        return TABLES.get(kind)
    with reading(path, encoding) as file:
        start = file.readline(PIECE) + file.readline(PIECE)
    if re.match(r'\s*\[\s*[{"\]]', start):
        return TABLES["array"]
    return TABLES["jsonl"] if re.match(r"\s*\{.*\}\s*\n\s*\{", start) else None


def jsonl_texts(path: str, column: str, encoding: str | None) -> Iterator[str]:
    return json_texts(jsonl_rows(path, encoding), path, column)


def array_texts(path: str, column: str, encoding: str | None) -> Iterator[str]:
    return json_texts(array_rows(path, encoding), path, column)


def jsonl_rows(path: str, encoding: str | None) -> Rows:
    with reading(path, encoding) as file:
        for number, line in enumerate(lines(file, path), start=1):
            if line.strip():
                yield f"{path}, line {number}", parse(line, f"{path}, line {number}")


def array_rows(path: str, encoding: str | None) -> Rows:
    with reading(path, encoding) as file:
        text = file.read(LONGEST_ARRAY + 1)
        if len(text) > LONGEST_ARRAY:
            raise UserError(
                f"{path} has more than {LONGEST_ARRAY:,} characters, and an array is read as a "
                "whole: make it .jsonl, one object per line."
            )
        rows = parse(text, path)
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}.") from None


def json_texts(rows: Rows, path: str, column: str) -> Iterator[str]:
    """The text of each row, which is an object or the text itself."""
    there, names = False, {}
    for where, row in rows:
        if not isinstance(row, dict | str):
            raise UserError(f"{where} is {json.dumps(row)[:40]}: neither an object nor a text.")
        value = row
        if isinstance(row, dict):
            value = row.get(column)
            names |= dict.fromkeys(row) if len(names) < 100 else {}
        there = there or isinstance(row, str) or column in row
        if isinstance(value, dict | list):
            raise UserError(f"{where} has no text as its {column!r}: {json.dumps(value)[:40]}.")
        if value is not None and not isinstance(value, str):
            value = json.dumps(value)  # a number, as it is written
        # JSON can spell half a character
        yield (value or "").encode(errors="replace").decode()
    if names and not there:
        raise no_column(path, column, names)


def csv_rows(text: Iterable[str], delimiters: str = ",;") -> csv.DictReader:
    """Its rows, column -> field. Semicolons, which spreadsheets write where the comma is the
    decimal sign, separate columns if the first line has more of them than commas."""
    text = iter(text)
    header = next(text, "")
    return csv.DictReader(chain([header], text), delimiter=max(delimiters, key=header.count))


def csv_texts(path: str, column: str, encoding: str | None, delimiters=",;") -> Iterator[str]:
    csv.field_size_limit(LONGEST_LINE)
    # csv tells line breaks in quotes from others itself
    with reading(path, encoding, newline="") as file:
        rows = csv_rows(lines(file, path), delimiters)
        try:
            if column not in (rows.fieldnames or ()):
                raise no_column(path, column, rows.fieldnames or ())
            for row in rows:
                yield row[column] or ""  # a short row has none
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num} is damaged: {error}.") from None


def tsv_texts(path: str, column: str, encoding: str | None) -> Iterator[str]:
    return csv_texts(path, column, encoding, delimiters="\t")


def parquet_texts(path: str, column: str, encoding: str | None) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            texts = [field.name for field in file.schema_arrow if is_text(field.type)]
            if column not in texts:
                raise no_column(path, column, texts)
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no parquet file: {error}") from None


def is_text(kind) -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return str(kind) in STRINGS


def no_column(path: str, column: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{path} has no text {column!r}: --column names one of {', '.join(names) or 'none'}."
    )


TABLES = {"jsonl": jsonl_texts, "ndjson": jsonl_texts, "array": array_texts}
TABLES |= {"csv": csv_texts, "tsv": tsv_texts, "parquet": parquet_texts}
