"""Write data/addition/: sums of two numbers, as in minGPT's adder.

    python -m projects.arithmetic.prepare_addition --digits=2

85 + 50 = 135 becomes 8550531: both numbers, then the sum reversed, since carries go from right to
left. A trained model adds by

    python sample.py --out_dir=out/addition --start=8550 \\
        --max_new_tokens=3 --temperature=0
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.arithmetic.prepare_addition"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

from configurator import configure

import numpy as np

from core import UserError
from projects.arithmetic.problems import write

# ---- settings ------------------------------------------------------------------------------------
digits = 2  # of each number
held_out = 500  # problems that validate and never train
problems = 1_000_000  # how many to take at random where there are more
seed = 1337  # of the choice of problems
globals().update(configure(__file__))
if not 1 <= digits <= 9:
    raise UserError(f"--digits={digits}: numbers of 1 to 9 digits are added.")

# ---- all problems, or some of them at random -----------------------------------------------------
total = 10 ** (2 * digits)
if total <= problems:
    chosen = np.arange(total)
else:
    chosen = np.unique(np.random.default_rng(seed).integers(total, size=problems))
if not 0 < held_out < len(chosen):
    raise UserError(f"--held_out={held_out} of {len(chosen)} problems leaves one split empty.")
a, b = np.divmod(chosen, 10**digits)


def digits_of(numbers: np.ndarray, width: int) -> np.ndarray:
    """(N,) -> (N, width), the last digit first."""
    return numbers[:, None] // 10 ** np.arange(width) % 10


questions = np.concatenate((digits_of(a, digits)[:, ::-1], digits_of(b, digits)[:, ::-1]), axis=1)
answers = digits_of(a + b, digits + 1)
source = {"name": f"sums of numbers of {digits} digits", "seed": seed}
counts = write("data/addition", "0123456789", questions, answers, held_out, seed, source)
print(f"data/addition: {counts['train']:,} problems to train on, {counts['val']:,} held out")
