"""Write data/sorting/: rows of symbols and the same sorted, as minGPT's demo.

    python prepare_sorting.py --length=6 --symbols=3

201102 is the row 201102001122. A trained model sorts by

    python sample.py --out_dir=out/sorting --start=201102 --max_new_tokens=6 --temperature=0
"""

import string

import numpy as np

from configurator import configure
from core import UserError, puzzle

# ---- settings ------------------------------------------------------------------------------------
length = 6  # symbols to sort
symbols = 3  # different ones: 0, 1, 2, ... 9, A, B, ...
val_share = 0.25  # of the rows that validate and never train
problems = 1_000_000  # at most, drawn by chance where there are more
seed = 1337  # of the choice of rows
globals().update(configure(__file__))
letters = string.digits + string.ascii_uppercase + string.ascii_lowercase
if length < 1 or not 2 <= symbols <= len(letters):
    raise UserError(
        f"--length={length} --symbols={symbols}: 2 to {len(letters)} symbols are sorted."
    )

# ---- all rows, or as many by chance --------------------------------------------------------------
if symbols**length <= problems:
    questions = np.stack(np.unravel_index(np.arange(symbols**length), (symbols,) * length), axis=1)
else:
    drawn = np.random.default_rng(seed).integers(symbols, size=(problems, length))
    questions = np.unique(drawn, axis=0)
held_out = round(val_share * len(questions))
if not 0 < held_out < len(questions):
    raise UserError(f"--val_share={val_share} of {len(questions)} rows leaves one split empty.")
answers = np.sort(questions, axis=1)
source = {"name": f"{length} of {symbols} symbols and the same sorted", "seed": seed}
chosen = letters[:symbols]
counts = puzzle.write("data/sorting", chosen, questions, answers, held_out, seed, source)
print(f"data/sorting: {counts['train']:,} rows to train on, {counts['val']:,} held out")
