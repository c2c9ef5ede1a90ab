"""Write data/dialogue/ from dialogues: one utterance a line, a blank line between dialogues.

    python prepare_dialogue.py --input=train.txt
    python prepare_dialogue.py --input=train.txt --tokenizer=gpt2 --mask=replies

    hi          becomes   hi<sep>hello<sep>how are you<eos>
    hello
    how are you

Without --input it downloads small-gpt's 500,000 Chinese dialogues. The first token of a dialogue is
never graded: nothing before it tells what it is.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from tqdm import tqdm

from configurator import configure
from core import UserError, corpus
from core.dataset import Writer
from core.download import fetch
from core.tokenizer import EOS, PAD, SEP, UNK, CharTokenizer, GPT2Tokenizer

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a UTF-8 text file or several with commas between; by default the download
url = (  # where the text is downloaded from
    "https://drive.usercontent.google.com/download?export=download&confirm=t"
    "&id=1nEuew_KNpTMbyy7BO4c8bXMXN351RCPp"
)
name = "dialogue"  # the folder under data/ to write
tokenizer: Literal["char", "gpt2"] = "char"  # a token is a character, or one of GPT-2's BPE
min_freq = 2  # a character that is rarer becomes <unk>
layout: Literal["stream", "rows"] = "stream"  # dialogues in a row, or each in rows of its own
row_length = 257  # tokens of such a row, one more than the context of the model
mask: Literal["all", "replies"] = "all"  # what is graded: all turns, or every second one
val_share = 0.02  # of the dialogues
seed = 1337  # of the choice of dialogues
globals().update(configure(__file__))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what tidies up

# ---- the dialogues -------------------------------------------------------------------------------
folder = os.path.join("data", name)
paths = input.split(",") if input else [os.path.join(folder, "input.txt")]
if not input and not os.path.exists(paths[0]):
    fetch(url, paths[0], progress=tqdm)


def dialogues() -> Iterator[list[str]]:
    """Each dialogue's turns, none empty."""
    for path in paths:
        turns: list[str] = []
        with corpus.reading(path), open(path, encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    turns.append(line.strip())
                elif turns:
                    yield turns
                    turns = []
        if turns:
            yield turns


count, frequencies = 0, Counter()
for turns in dialogues():
    count += 1
    if tokenizer == "char":
        frequencies.update("".join(turns))
    if count == 1 and turns[0].lower().startswith("<!doctype"):
        raise UserError(f"{paths[0]} is a web page, not dialogues: download it by hand.")
if count < 2:
    raise UserError(f"{input or url} holds {count} dialogues: one to train on and one to validate.")
if tokenizer == "char":
    known = sorted(char for char, n in frequencies.items() if n >= min_freq)
    coder = CharTokenizer(known, (PAD, SEP, EOS, UNK))
else:
    coder = GPT2Tokenizer((PAD, SEP, EOS))
pad, sep, eos = (coder.special[name] for name in (PAD, SEP, EOS))


# ---- the tokens ----------------------------------------------------------------------------------
def encode(turns: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Each turn's ids with what ends it, and which of them are graded."""
    ids = [[*coder.encode_array(turn).tolist(), sep] for turn in turns]
    ids[-1][-1] = eos
    graded = [[int(mask == "all" or i % 2)] * len(turn) for i, turn in enumerate(ids)]
    graded[0][0] = 0
    return ids, graded


def flat(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def rows(ids: list[list[int]], graded: list[list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """The dialogue in rows of one length, cut between turns; a longer turn loses its end."""
    row, marks = [], []
    for turn, its_marks in zip(ids, graded, strict=True):
        if row and len(row) + len(turn) > row_length:
            yield fill(row, marks)
            row, marks = [], []
        row, marks = row + turn, marks + its_marks
    yield fill(row, marks)


def fill(row: list[int], marks: list[int]) -> tuple[list[int], list[int]]:
    missing = row_length - len(row)
    return (row + [pad] * missing)[:row_length], (marks + [0] * missing)[:row_length]


source = {"name": ", ".join(map(os.path.basename, paths)), "dialogues": count}
whole = row_length if layout == "rows" else None
with Writer(folder, coder, source, row_length=whole) as writer:
    for number, turns in enumerate(tqdm(dialogues(), total=count, unit=" dialogues")):
        split = corpus.split_of(number, val_share, seed)
        ids, graded = encode(turns)
        parts = rows(ids, graded) if layout == "rows" else [(flat(ids), flat(graded))]
        for part, marks in parts:
            writer.append(split, part, marks)
for split, tokens in writer.counts.items():
    print(f"{os.path.join(folder, split)}.bin: {tokens:,} tokens")
print(f"{coder.vocab_size:,} tokens in the vocabulary; {count:,} dialogues")
