"""Labelled texts: read from a CSV file, and put to a model as a question that a label answers.

good, labelled 1  ->  good<extract><label 1>
"""

import csv
import unicodedata

from core import UserError
from core.extras.tables import csv_rows
from core.extras.textfile import reading
from core.tokenizer import PAD, Tokenizer

EXTRACT = "<extract>"  # follows a text; the label's token follows it


def label_token(label: str) -> str:
    """The name of the token that stands for a label."""
    return f"<label {label}>"


def plain(text: str) -> str:
    """Text on one line in its compatibility form, NFKC: a full-width comma is a comma, too."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def labelled_rows(
    path: str, column: str, label_column: str, encoding: str
) -> list[tuple[str, str | None]]:
    """Each row of a CSV file as its text, made plain, and its label.

    column: of the texts; "" = the first that is not label_column. Labels are None if there is no
    label_column. UserError if there is no column of texts.
    """
    csv.field_size_limit(2**31 - 1)  # the largest that Windows accepts
    with reading(path, encoding, newline="") as file:  # csv tells line breaks in quotes from others
        rows = csv_rows(file)
        names = list(rows.fieldnames or ())
        column = column or next((name for name in names if name != label_column), "text")
        if column not in names:
            there = ", ".join(names) or "none"
            raise UserError(f"{path} has no column {column!r}: --column names one of {there}.")
        pairs = [(plain(row[column] or ""), row.get(label_column)) for row in rows]
    if label_column not in names:
        return pairs
    return [(text, (label or "").strip()) for text, label in pairs]  # a short row has no label


def questions(tokenizer: Tokenizer, text: str, task: dict) -> list[list[int]]:
    """The ids that the label of a text follows, those of a long text in several parts.

    task: as prepare.py writes it: {"length": tokens that the model reads, "padded": whether
    padding stands before <extract>, ...}.
    """
    ids, longest = tokenizer.encode(text).tolist(), task["length"] - 1
    count = max(1, -(-len(ids) // longest))
    size = -(-len(ids) // count)
    parts = [ids[i * size : (i + 1) * size] for i in range(count)]
    if task["padded"]:
        parts = [part + [tokenizer.special[PAD]] * (longest - len(part)) for part in parts]
    return [[*part, tokenizer.special[EXTRACT]] for part in parts]
