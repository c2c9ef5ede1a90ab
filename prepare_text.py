"""Write data/NAME/ from your own files: text, source code, jsonl, json, csv, tsv, parquet, or .gz.

    python prepare_text.py --input=my.txt --tokenizer=char
    python prepare_text.py --input=src/ --name=code
    python prepare_text.py --input="corpus/*.jsonl.gz" \\
        --name=corpus --column=text
    python prepare_text.py --input=my.txt \\
        --tokenizer=train --vocab_size=8000
    python prepare_text.py --input=my.txt \\
        --tokenizer=uer/gpt2-chinese-cluecorpussmall

A file is one document, as is each row of a table: of a .json file, if it is a list. Several
documents are separated by the end-of-text token. Each is in one split, whole, except that a long
one is cut in two; equal ones are in the same split.
"""

import os
import shlex
from collections.abc import Iterable, Iterator

from configurator import configure

from tqdm import tqdm

from core import UserError
from core.dataset import Writer, folder_for
from core.extras import hub, texts
from core.extras.splits import Splits
from core.tokenizer import END, CharTokenizer, from_dict

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a file, a folder, or a pattern such as "texts/*.txt"
name = ""  # the dataset's, data/NAME; by default the input's
tokenizer = "gpt2"  # gpt2, char, byte, train (a BPE), a tokenizer.json or its folder, or ORG/NAME
vocab_size = 8000  # tokens of --tokenizer=train
column = "text"  # of tables
encoding = "utf-8"  # of files without a byte order mark, such as gb18030 or cp1252
val_fraction = 0.1  # of the characters
seed = 1337  # of the choice of documents
globals().update(configure(__file__))

if not input:
    raise UserError("--input= names the file, the folder or the pattern of files to prepare.")
splits, alphabet = Splits(val_fraction, seed), set()
paths, left_out = texts.files(input, encoding)
if left_out:
    print(texts.describe(left_out))
name = name or os.path.basename(os.path.normpath(input)).split(".")[0]
if not name or "*" in name:
    raise UserError(f"--input={input} gives the dataset no name: add --name=NAME.")
folder = folder_for(name)
coder = None  # of --tokenizer=char and train: once the text is known
if tokenizer == "train":
    from core.extras import hf_tokenizer

    hf_tokenizer.check_size(vocab_size)
elif tokenizer != "char":
    coder = from_dict({"kind": "byte"} if tokenizer == "byte" else hub.find_tokenizer(tokenizer))


# ---- a first look: how long the documents are, and which characters they have --------------------
def first_look(document: Iterable[str]) -> Iterator[str]:
    for text in document:
        if tokenizer == "char":
            alphabet.update(text)
        yield text


for document in tqdm(texts.documents(paths, column, encoding), "reading", unit=" documents"):
    splits.add(first_look(document))
train_lengths = splits.choose()
empty = splits.lengths.count(0)
count = len(train_lengths) - empty
if empty:
    print(f"skipped: {empty:,} rows or files without text")


# ---- the tokens ----------------------------------------------------------------------------------
def pieces() -> Iterator[texts.Piece]:
    documents = texts.documents(paths, column, encoding)
    for document, train_length in zip(documents, train_lengths, strict=True):
        yield from texts.split_pieces(document, train_length, with_end=count > 1)


if tokenizer == "char":
    coder = CharTokenizer(sorted(alphabet), [END] if count > 1 else [])
if tokenizer == "train":
    bar = tqdm(pieces(), "training the tokenizer", unit=" pieces")
    coder = hf_tokenizer.train((text for split, text, _ in bar if split == "train"), vocab_size)
if count > 1 and coder.end_token is None:
    coder = from_dict({**coder.to_dict(), "special": [END]})

source = {"name": input, "documents": count}
bar = tqdm(total=splits.num_bytes, desc="encoding", unit="B", unit_scale=True)
with bar, Writer(folder, coder, source) as writer:
    for ids, sizes in texts.encoded(pieces(), coder):
        for split in ids:
            writer.append(split, ids[split], num_bytes=sizes[split])
        bar.update(sum(sizes.values()))
print(f"{coder.vocab_size:,} tokens in the vocabulary; {count:,} documents")
for split, tokens in writer.counts.items():
    path, fraction = os.path.join(folder, split), splits.fractions[split]
    print(f"{path}.bin: {tokens:,} tokens, {fraction:.1%} of the characters")
command = ["python", "train.py", "config/my_text.py", f"--dataset={name}", f"--out_dir=out/{name}"]
print(f"train on it: {shlex.join(command)}")
