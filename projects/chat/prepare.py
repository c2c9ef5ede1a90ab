"""Write data/dialogue/ from dialogues: one turn per line, a blank line between dialogues.

    python -m projects.chat.prepare --input=train.txt
    python -m projects.chat.prepare --input=train.txt \\
        --tokenizer=gpt2 --mask=replies
    python -m projects.chat.prepare --input=chat.jsonl

    hi          becomes   hi<sep>hello<sep>how are you<eos>
    hello
    how are you

A .jsonl file has a conversation with roles per line, "messages" or "prompt" and "response", and the
assistant's turns are the targets: see projects/chat/tokens.py.

Without --input it downloads small-gpt's 500,000 Chinese dialogues. The first token of a dialogue
is never a target: nothing before it tells what it is.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.chat.prepare"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from configurator import configure

from tqdm import tqdm

from core import UserError
from core.dataset import Writer, folder_for
from core.download import download
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.extras.splits import Splits
from core.extras.tables import jsonl_rows
from core.extras.textfile import reading
from core.tokenizer import PAD, UNK, CharTokenizer
from projects.chat.tokens import EOS, ROLES, SEP, turns_of

Turn = tuple[str, str]  # role, "" in a text file; text

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a text or .jsonl file, or several separated by commas; by default the download
url = (  # where the text is downloaded from
    "https://drive.usercontent.google.com/download?export=download&confirm=t"
    "&id=1nEuew_KNpTMbyy7BO4c8bXMXN351RCPp"
)
encoding = "utf-8"  # of files without a byte order mark, such as gb18030
name = "dialogue"  # the folder under data/ to write
tokenizer: Literal["char", "gpt2"] = "char"  # a token is a character, or one of GPT-2's BPE
min_freq = 2  # a character that is rarer becomes <unk>
layout: Literal["stream", "rows"] = "stream"  # one stream, or examples of one dialogue each
row_length = 257  # tokens of such an example, one more than the context of the model
# the targets: all turns, or replies, which without roles are every second turn
mask: Literal["auto", "all", "replies"] = "auto"  # auto = replies where there are roles, else all
val_fraction = 0.02  # of the characters; equal dialogues are in the same split
seed = 1337  # of the choice of dialogues
globals().update(configure(__file__))

# ---- the dialogues -------------------------------------------------------------------------------
folder = folder_for(name)
paths = input.split(",") if input else [os.path.join(folder, "input.txt")]
if not input and not os.path.exists(paths[0]):
    download(url, paths[0])
has_roles = all(re.search(r"\.jsonl(\.gz)?$", path) for path in paths)
if not has_roles and any(".jsonl" in path for path in paths):
    raise UserError(f"--input={input}: give either .jsonl files or text files.")
mask = mask if mask != "auto" else "replies" if has_roles else "all"


def dialogues() -> Iterator[list[Turn]]:
    """The turns of each dialogue, none of them empty."""
    for path in paths:
        if has_roles:
            yield from filter(None, (turns_of(row, at) for at, row in jsonl_rows(path, encoding)))
        else:
            yield from text_dialogues(path)


def text_dialogues(path: str) -> Iterator[list[Turn]]:
    turns: list[Turn] = []
    with reading(path, encoding) as file:
        for line in file:
            if line.strip():
                turns.append(("", line.strip()))
            elif turns:
                yield turns
                turns = []
    if turns:
        yield turns


splits, frequencies = Splits(val_fraction, seed, may_cut=False), Counter()
for turns in dialogues():
    splits.add([text for _, text in turns])
    if tokenizer == "char":
        frequencies.update("".join(text for _, text in turns))
    if len(splits.lengths) == 1 and turns[0][1].lower().startswith("<!doctype"):
        raise UserError(f"{paths[0]} is a web page, not dialogues: download it by hand.")
count = len(splits.lengths)
if count < 2:
    raise UserError(f"{input or url} holds {count} dialogues: one to train on and one to validate.")
train_lengths, role_tokens = splits.choose(), ROLES.values() if has_roles else ()
if tokenizer == "char":
    frequent = sorted(char for char, times in frequencies.items() if times >= min_freq)
    coder = CharTokenizer(frequent, (PAD, SEP, EOS, UNK, *role_tokens))
else:
    coder = GPT2Tokenizer((PAD, SEP, EOS, *role_tokens))


# ---- the tokens ----------------------------------------------------------------------------------
def encode(turns: list[Turn]) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of each turn with the tokens around it, and the loss mask of each."""
    ids, masks = [], []
    for number, (role, text) in enumerate(turns):
        end = EOS if number == len(turns) - 1 else SEP
        ids.append([*coder.encode(text).tolist(), coder.special[end]])
        is_reply = role == "assistant" if has_roles else number % 2 == 1
        masks.append([int(is_reply or mask == "all")] * len(ids[-1]))
        if has_roles:  # whose turn it is, the model is told
            ids[-1].insert(0, coder.special[ROLES[role]])
            masks[-1].insert(0, 0)
    masks[0][0] = 0
    return ids, masks


def examples(ids: list[list[int]], masks: list[list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """A dialogue as examples of row_length tokens and their loss masks.

    It is cut between turns and padded; a turn that is longer than an example loses its end.
    """
    example, marks = [], []
    for turn, turn_marks in zip(ids, masks, strict=True):
        if example and len(example) + len(turn) > row_length:
            yield fit(example, coder.special[PAD]), fit(marks, 0)
            example, marks = [], []
        example, marks = example + turn, marks + turn_marks
    yield fit(example, coder.special[PAD]), fit(marks, 0)


def fit(numbers: list[int], padding: int) -> list[int]:
    return (numbers + [padding] * (row_length - len(numbers)))[:row_length]


source = {"name": ", ".join(map(os.path.basename, paths)), "dialogues": count}
example_length = row_length if layout == "rows" else None
use = "python -m projects.chat.talk --out_dir={out_dir}"
with Writer(folder, coder, source, example_length, use=use) as writer:
    bar = tqdm(dialogues(), total=count, unit=" dialogues")
    for turns, train_length in zip(bar, train_lengths, strict=True):
        split = "train" if train_length else "val"
        ids, masks = encode(turns)
        if layout == "rows":
            for example, marks in examples(ids, masks):
                writer.append(split, example, marks)
            continue
        # bits per byte are those of all text: there are none where part of it is ignored
        num_bytes = sum(len(text.encode()) for _, text in turns) if mask == "all" else 0
        writer.append(split, list(chain(*ids)), list(chain(*masks)), num_bytes)
for split, tokens in writer.counts.items():
    path, fraction = os.path.join(folder, split), splits.fractions[split]
    print(f"{path}.bin: {tokens:,} tokens, {fraction:.1%} of the characters")
print(f"{coder.vocab_size:,} tokens in the vocabulary; {count:,} dialogues")
