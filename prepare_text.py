"""Write data/NAME/ from your own files: text, source code, jsonl, json, csv, tsv, parquet, or .gz.

    python prepare_text.py --input=my.txt --tokenizer=char
    python prepare_text.py --input=src/ --name=code
    python prepare_text.py --input="corpus/*.jsonl.gz" \\
        --name=corpus --column=text

A file is one document, as is each row of a table: of a .json file, if it is a list. Several
documents are separated by the end-of-text token. Each is in one split, whole, except that a long
one is cut in two; equal ones are in the same split.
"""

import os
import shlex
from collections.abc import Iterable, Iterator
from typing import Literal

from configurator import configure

from tqdm import tqdm

from core import UserError, texts
from core.dataset import Writer, folder_for
from core.splits import Splits
from core.tokenizer import END, ByteTokenizer, CharTokenizer, GPT2Tokenizer

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a file, a folder, or a pattern such as "texts/*.txt"
name = ""  # the dataset's, data/NAME; by default the input's
tokenizer: Literal["gpt2", "char", "byte"] = "gpt2"  # a token is GPT-2's, a character or a byte
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
if tokenizer == "char":
    coder = CharTokenizer(sorted(alphabet), [END] if count > 1 else [])
else:
    coder = GPT2Tokenizer() if tokenizer == "gpt2" else ByteTokenizer()


# ---- the tokens ----------------------------------------------------------------------------------
def pieces() -> Iterator[texts.Piece]:
    documents = texts.documents(paths, column, encoding)
    for document, train_length in zip(documents, train_lengths, strict=True):
        yield from texts.split_pieces(document, train_length, with_end=count > 1)


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
