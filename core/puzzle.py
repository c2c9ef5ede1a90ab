"""Questions with one right answer as a dataset of rows, the answer alone graded.

write("data/sorting", "012", questions=[[2, 0, 1]], answers=[[0, 1, 2]], ...) makes the row 201012,
of which the mask 000111 grades the last three tokens.
"""

import numpy as np

from core.dataset import Writer
from core.runtime import seed_at
from core.tokenizer import CharTokenizer


def write(
    folder: str,
    symbols: str,
    questions: np.ndarray,
    answers: np.ndarray,
    held_out: int,
    seed: int,
    source: dict,
) -> dict[str, int]:
    """Write the rows, one symbol a token, and return how many each split has.

    questions, answers: (N, q) and (N, a) indices into `symbols`, no question twice.
    held_out: how many of the questions validate: those whose hash is smallest, so that it is a
        function of (seed, question) which they are, and the others train.
    """
    rows = np.concatenate((questions, answers), axis=1)
    hashes = seed_at(seed, *questions.T.astype(np.uint64))
    order = np.argsort(hashes, kind="stable")
    mask = np.zeros_like(rows)
    mask[:, questions.shape[1] :] = 1
    parts = {"val": order[:held_out], "train": np.sort(order[held_out:])}
    with Writer(folder, CharTokenizer(symbols), source, row_length=rows.shape[1]) as writer:
        for split, chosen in parts.items():
            writer.append(split, rows[chosen].ravel(), mask[chosen].ravel())
    return {split: len(chosen) for split, chosen in parts.items()}
