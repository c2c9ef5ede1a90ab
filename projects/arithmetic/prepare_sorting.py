"""Write data/sorting/: symbols, and the same symbols sorted, as in minGPT's demo.

    python -m projects.arithmetic.prepare_sorting --length=6 --symbols=3

201102 becomes 201102001122. A trained model sorts by

    python sample.py --out_dir=out/sorting --start=201102 \\
        --max_new_tokens=6 --temperature=0
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.arithmetic.prepare_sorting"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import string

from configurator import configure

import numpy as np

from core import UserError
from projects.arithmetic.problems import write

# ---- settings ------------------------------------------------------------------------------------
length = 6  # symbols to sort
symbols = 3  # how many different ones: 0, 1, 2, ... 9, A, B, ...
val_fraction = 0.25  # of the examples, which never train
problems = 1_000_000  # how many to take at random where there are more
seed = 1337  # of the choice of examples
globals().update(configure(__file__))
letters = string.digits + string.ascii_uppercase + string.ascii_lowercase
if not 2 <= symbols <= len(letters):
    raise UserError(f"--symbols={symbols}: 2 to {len(letters)} symbols are sorted.")

# ---- all problems, or some of them at random -----------------------------------------------------
if symbols**length <= problems:
    questions = np.stack(np.unravel_index(np.arange(symbols**length), (symbols,) * length), axis=1)
else:
    chosen = np.random.default_rng(seed).integers(symbols, size=(problems, length))
    questions = np.unique(chosen, axis=0)
held_out = round(val_fraction * len(questions))
if not 0 < held_out < len(questions):
    size = len(questions)
    raise UserError(f"--val_fraction={val_fraction} of {size} examples leaves one split empty.")
answers = np.sort(questions, axis=1)
source = {"name": f"{length} of {symbols} symbols and the same sorted", "seed": seed}
counts = write("data/sorting", letters[:symbols], questions, answers, held_out, seed, source)
print(f"data/sorting: {counts['train']:,} examples to train on, {counts['val']:,} held out")
