"""Write data/reviews/ from a CSV of labelled texts: examples in which only the label is a target.

    python -m projects.reviews.prepare --input=reviews.csv
    python -m projects.reviews.prepare --input=reviews.csv \\
        --vocab_from=out/dialogue_tiny

    label,text      becomes   good<extract><label 1><pad><pad> ...
    1,good

Each distinct text counts once and is in one split; a long one becomes several examples. The folder
also gets train.txt, for pretraining on these texts, and val.csv, for classify.py.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.reviews.prepare"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import csv
import os
import shlex
from collections import Counter

from configurator import configure

from core import UserError, checkpoint
from core.dataset import Writer, folder_for
from core.extras.splits import Splits
from core.tokenizer import PAD, UNK, CharTokenizer, Tokenizer, from_dict
from projects.reviews.labels import EXTRACT, label_token, labelled_rows, questions

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a CSV file with a line of column names
label_column = "label"  # its column of labels, any text
encoding = "utf-8"  # of a file without a byte order mark, such as gb18030
column = ""  # its column of texts, by default the first other one
name = "reviews"  # the folder under data/ to write
vocab_from = ""  # a run whose vocabulary to take and extend; by default the training texts'
min_freq = 2  # a character that is rarer becomes <unk>
length = 256  # tokens that the model reads: longer texts become several examples
masked = True  # ask for the label after the last character; False: after the padding
val_fraction = 0.2  # of the characters
seed = 1337  # of the choice of texts
globals().update(configure(__file__))

if not input:
    raise UserError("--input= names the CSV file of labelled texts.")
if length < 2:
    raise UserError(f"--length={length} leaves no room for text: at least 2 tokens are read.")

# ---- the texts -----------------------------------------------------------------------------------
splits, label_of = Splits(val_fraction, seed, may_cut=False), {}
empty = repeated = 0
for text, label in labelled_rows(input, column, label_column, encoding):
    if label is None:
        raise UserError(f"--input={input} has no column {label_column}: --label_column names it.")
    if not text or not label:
        empty += 1
    elif text in label_of:
        repeated += 1
    else:
        label_of[text] = label

chosen: dict[str, list[str]] = {"train": [], "val": []}
for text in label_of:
    splits.add([text])
if len(label_of) > 1:
    for text, train_length in zip(label_of, splits.choose(), strict=True):
        chosen["train" if train_length else "val"].append(text)
labels = sorted({label_of[text] for text in chosen["train"]})
if len(labels) < 2:
    raise UserError(f"--input={input} has {len(labels)} labels to train on: at least 2 are needed.")
if unseen := {label_of[text] for text in chosen["val"]} - set(labels):
    raise UserError(f"no text to train on has the label {min(unseen)}: change --seed.")


# ---- the vocabulary ------------------------------------------------------------------------------
def extended(saved: dict | None, names: list[str]) -> Tokenizer:
    """A checkpoint's tokenizer with these special tokens too."""
    if saved is None or saved["kind"] == "byte":
        raise UserError(f"--vocab_from={vocab_from} needs another vocabulary than bytes.")
    known = list(saved.get("special", ()))
    return from_dict({**saved, "special": known + [name for name in names if name not in known]})


names = [PAD, UNK, EXTRACT, *map(label_token, labels)]
if vocab_from:
    coder = extended(checkpoint.load(vocab_from)["tokenizer"], names)
else:
    frequencies = Counter("".join(chosen["train"]))
    frequent = sorted(char for char, times in frequencies.items() if times >= min_freq)
    coder = CharTokenizer(frequent, names)

# ---- the examples --------------------------------------------------------------------------------
task = {"kind": "labels", "labels": labels, "length": length, "padded": not masked}
folder = folder_for(name)
source = {"name": os.path.basename(input), "texts": len(label_of)}
val_csv = os.path.join(folder, "val.csv")
use = f"python -m projects.reviews.classify --out_dir={{out_dir}} --input={shlex.quote(val_csv)}"
with Writer(folder, coder, source, length + 1, task, use) as writer:
    for split in chosen:
        for text in chosen[split]:
            answer = coder.special[label_token(label_of[text])]
            for question in questions(coder, text, task):
                padding = length - len(question)
                ids = [*question, answer] + [coder.special[PAD]] * padding
                writer.append(split, ids, [0] * len(question) + [1] + [0] * padding)
with open(os.path.join(folder, "train.txt"), "w", encoding="utf-8") as file:
    file.writelines(f"{text}\n\n" for text in chosen["train"])
with open(val_csv, "w", encoding="utf-8", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["label", "text"])
    rows.writerows([label_of[text], text] for text in chosen["val"])
for split, tokens in writer.counts.items():
    count = tokens // (length + 1)
    print(f"{os.path.join(folder, split)}.bin: {len(chosen[split]):,} texts, {count:,} examples")
print(f"left out: {repeated:,} repeated texts, {empty:,} without text or label")
print(f"{coder.vocab_size:,} tokens in the vocabulary; labels {', '.join(labels)}")
