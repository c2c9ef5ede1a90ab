"""Write data/reviews/ from a CSV of labelled texts: rows in which only the label is graded.

    python prepare_reviews.py --input=reviews.csv
    python prepare_reviews.py --input=reviews.csv --vocab_from=out/dialogue_tiny

    label,text      becomes   good<extract><label 1><pad><pad> ...
    1,good

Each distinct text counts once and is in one split; a long one becomes several rows. Beside the rows
stand train.txt, for pretraining on these texts, and val.csv, for classify.py.
"""

import csv
import os
from collections import Counter

from configurator import configure
from core import UserError, checkpoint, corpus
from core.dataset import Writer
from core.score import questions
from core.tokenizer import EXTRACT, PAD, UNK, CharTokenizer, GPT2Tokenizer, from_dict

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a UTF-8 CSV file with a line of column names
label_column = "label"  # its column of labels, any text
column = ""  # its column of texts, by default the first other one
name = "reviews"  # the folder under data/ to write
vocab_from = ""  # a run whose vocabulary to take and add to; by default the training texts'
min_freq = 2  # a character that is rarer becomes <unk>
length = 256  # tokens that the model reads: longer texts are cut into several rows
masked = True  # ask for the label after the last character; False: after the padding
val_share = 0.2  # of the texts
seed = 1337  # of the choice of texts
globals().update(configure(__file__))

# ---- the texts -----------------------------------------------------------------------------------
labels_of: dict[str, str] = {}
empty = again = 0
for text, label in corpus.labelled_rows(input, column, label_column):
    if label is None:
        raise UserError(f"--input={input} has no column {label_column}: --label_column names it.")
    empty, again = empty + (not text or not label), again + (text in labels_of)
    if text and label:
        labels_of.setdefault(text, label)

texts = {"train": [], "val": []}
for number, text in enumerate(labels_of):
    texts[corpus.split_of(number, val_share, seed)].append(text)
counts = Counter(labels_of[text] for text in texts["train"])
labels = sorted(counts)
if len(labels) < 2:
    raise UserError(
        f"--input={input} has {len(labels)} labels to train on: two or more are learned."
    )
if unseen := {labels_of[text] for text in texts["val"]} - set(labels):
    raise UserError(f"no text to train on has the label {min(unseen)}: change --seed.")

# ---- the vocabulary ------------------------------------------------------------------------------
names = [f"<label {label}>" for label in labels]
if vocab_from:
    saved = checkpoint.load(checkpoint.find(vocab_from))["tokenizer"]
    if saved is None or saved["kind"] == "byte":
        raise UserError(
            f"--vocab_from={vocab_from}: a vocabulary of characters or GPT-2's is taken."
        )
    known = list(saved.get("special", ()))
    special = [*known, *(n for n in (PAD, UNK, EXTRACT, *names) if n not in known)]
    coder = from_dict({**saved, "special": special})
else:
    frequencies = Counter("".join(texts["train"]))
    chars = sorted(char for char, n in frequencies.items() if n >= min_freq)
    coder = CharTokenizer(chars, (PAD, UNK, EXTRACT, *names))
if isinstance(coder, GPT2Tokenizer):
    coder.encode("")  # complains early if it can't be loaded

# ---- the rows ------------------------------------------------------------------------------------
task = {"kind": "labels", "labels": labels, "length": length, "padded": not masked}
folder = os.path.join("data", name)
source = {"name": os.path.basename(input), "texts": len(labels_of)}
with Writer(folder, coder, source, row_length=length + 1, task=task) as writer:
    for split, chosen in texts.items():
        for text in chosen:
            answer = coder.special[f"<label {labels_of[text]}>"]
            for asked in questions(coder, text, task):
                row = [*asked, answer]
                filling = length + 1 - len(row)
                mask = [0] * len(asked) + [1] + [0] * filling
                writer.append(split, row + [coder.special[PAD]] * filling, mask)
with open(os.path.join(folder, "train.txt"), "w", encoding="utf-8") as file:
    file.writelines(f"{text}\n\n" for text in texts["train"])
with open(os.path.join(folder, "val.csv"), "w", encoding="utf-8", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["label", "text"])
    rows.writerows([labels_of[text], text] for text in texts["val"])
for split, tokens in writer.counts.items():
    rows_there = tokens // (length + 1)
    print(f"{os.path.join(folder, split)}.bin: {len(texts[split]):,} texts in {rows_there:,} rows")
print(f"left out: {again:,} texts that came before, {empty:,} without text or label")
print(f"{coder.vocab_size:,} tokens in the vocabulary; labels {', '.join(labels)}")
