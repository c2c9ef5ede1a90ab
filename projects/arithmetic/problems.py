"""Questions with one correct answer as a dataset of examples; only the answer's tokens are targets.

write("data/sorting", "012", questions=[[2, 0, 1]], answers=[[0, 1, 2]], ...) makes the example
201012, and its loss mask 000111.
"""

import numpy as np

from core.batches import fold_in
from core.dataset import Writer
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
    """Write the examples, one token per symbol; how many each split has.

    questions, answers: (N, q) and (N, a) indices into `symbols`, no question twice.
    held_out: how many of the questions validate: those with the smallest hash of (seed, question).
        The others train.
    """
    examples = np.concatenate((questions, answers), axis=1)  # (N, q + a)
    hashes = fold_in(seed, *questions.T.astype(np.uint64))  # (N,)
    order = np.argsort(hashes, kind="stable")
    mask = np.zeros_like(examples)
    mask[:, questions.shape[1] :] = 1
    splits = {"val": order[:held_out], "train": np.sort(order[held_out:])}
    question = "".join(symbols[i] for i in questions[order[0]])
    use = f"python sample.py --out_dir={{out_dir}} --start={question} \\\n"
    use += f"    --max_new_tokens={answers.shape[1]} --temperature=0 --num_samples=1"
    coder, width = CharTokenizer(symbols), examples.shape[1]
    with Writer(folder, coder, source, row_length=width, use=use) as writer:
        for split, chosen in splits.items():
            writer.append(split, examples[chosen].ravel(), mask[chosen].ravel())
    return {split: len(chosen) for split, chosen in splits.items()}
