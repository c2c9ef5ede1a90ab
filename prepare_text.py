"""Write data/NAME/ from your own files: text, source code, jsonl, csv, parquet, any of them .gz.

    python prepare_text.py --input=my.txt --tokenizer=char
    python prepare_text.py --input=src/ --name=code
    python prepare_text.py --input="corpus/*.jsonl.gz" --name=corpus --column=text

One file is one document, as is each row of a table. Several documents are separated by the
end-of-text token and split between training and validation whole; a single one is split in two.
"""

import os
import signal
import sys
from collections.abc import Iterator
from typing import Literal

from tqdm import tqdm

from configurator import configure
from core import UserError, corpus
from core.dataset import Writer
from core.tokenizer import END, ByteTokenizer, CharTokenizer, GPT2Tokenizer

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a file, a folder, or a pattern such as "texts/*.txt"
name = ""  # the dataset's, data/NAME; by default the input's
tokenizer: Literal["gpt2", "char", "byte"] = "gpt2"  # GPT-2's BPE, or a token a character or byte
column = "text"  # of jsonl, csv and parquet files
val_share = 0.1  # of the documents, or of the characters of a single one
seed = 1337  # of the choice of documents
globals().update(configure(__file__))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what tidies up

if not input:
    raise UserError("--input= names the file, the folder or the pattern of files to prepare.")
paths = corpus.files(input)
name = name or os.path.basename(os.path.normpath(input)).split(".")[0]
if not name or "*" in name:
    raise UserError(f"--input={input} gives the dataset no name: add --name=NAME.")

# ---- a first look: how many documents and characters, and which ----------------------------------
count, characters, size, alphabet = 0, 0, 0, set()
for document in tqdm(corpus.documents(paths, column), "reading", unit=" documents"):
    count += 1
    for text in document:
        characters += len(text)
        size += len(text.encode())
        if tokenizer == "char":
            alphabet.update(text)
train_characters = int(characters * (1 - val_share))
if not 0 < train_characters < characters:
    raise UserError(f"--input={input} holds {characters} characters: too few to train on.")
special = [END] if count > 1 else []
coder = {"gpt2": GPT2Tokenizer, "byte": ByteTokenizer}.get(
    tokenizer, lambda: CharTokenizer(sorted(alphabet), special)
)()


# ---- the tokens ----------------------------------------------------------------------------------
def texts() -> Iterator[tuple[str, str, bool]]:
    """Every piece with its split, and whether the end-of-text token follows."""
    for number, document in enumerate(corpus.documents(paths, column)):
        if count == 1:
            place = 0
            for text in document:
                cut = min(max(0, train_characters - place), len(text))
                yield from ((s, t, False) for s, t in (("train", text[:cut]), ("val", text[cut:])))
                place += len(text)
            return
        yield from corpus.with_end(document, corpus.split_of(number, val_share, seed))


source = {"name": input, "documents": count, "bytes": size}
bar = tqdm(total=size, desc="encoding", unit="B", unit_scale=True)
with bar, Writer(os.path.join("data", name), coder, source) as writer:
    for ids, done in corpus.encoded(texts(), coder):
        for split, part in ids.items():
            writer.append(split, part)
        bar.update(done)
for split, tokens in writer.counts.items():
    print(f"{os.path.join('data', name, split)}.bin: {tokens:,} tokens")
print(f"{coder.vocab_size:,} tokens in the vocabulary; {count:,} documents, {size:,} bytes")
