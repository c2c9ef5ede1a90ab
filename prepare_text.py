"""Write data/NAME/ from your own files: text, source code, jsonl, csv, parquet, any of them .gz.

    python prepare_text.py --input=my.txt --tokenizer=char
    python prepare_text.py --input=src/ --name=code
    python prepare_text.py --input="corpus/*.jsonl.gz" --name=corpus --column=text

A file is one document, as is each row of a table. Several documents are separated by the
end-of-text token, and each is in one split, whole; a single one is cut in two.
"""

import os
from collections.abc import Iterator
from typing import Literal

from configurator import configure

from tqdm import tqdm

from core import UserError, texts
from core.dataset import Writer
from core.tokenizer import END, ByteTokenizer, CharTokenizer, GPT2Tokenizer

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a file, a folder, or a pattern such as "texts/*.txt"
name = ""  # the dataset's, data/NAME; by default the input's
tokenizer: Literal["gpt2", "char", "byte"] = "gpt2"  # a token is GPT-2's, a character or a byte
column = "text"  # of jsonl, csv and parquet files
val_fraction = 0.1  # of the documents, or of the characters of a single one
seed = 1337  # of the choice of documents
globals().update(configure(__file__))

if not input:
    raise UserError("--input= names the file, the folder or the pattern of files to prepare.")
paths = texts.files(input)
name = name or os.path.basename(os.path.normpath(input)).split(".")[0]
if not name or "*" in name:
    raise UserError(f"--input={input} gives the dataset no name: add --name=NAME.")

# ---- a first look: how many documents and characters, and which characters -----------------------
count, characters, num_bytes, alphabet = 0, 0, 0, set()
for document in tqdm(texts.documents(paths, column), "reading", unit=" documents"):
    count += 1
    for text in document:
        characters += len(text)
        num_bytes += len(text.encode())
        if tokenizer == "char":
            alphabet.update(text)
train_characters = int(characters * (1 - val_fraction))
if not 0 < train_characters < characters:
    raise UserError(f"--input={input} holds {characters} characters: too few to train on.")
if tokenizer == "char":
    coder = CharTokenizer(sorted(alphabet), [END] if count > 1 else [])
else:
    coder = GPT2Tokenizer() if tokenizer == "gpt2" else ByteTokenizer()


# ---- the tokens ----------------------------------------------------------------------------------
def pieces() -> Iterator[texts.Piece]:
    for number, document in enumerate(texts.documents(paths, column)):
        if count > 1:
            yield from texts.with_end(document, texts.split_of(number, val_fraction, seed))
            continue
        left = train_characters
        for text in document:
            yield "train", text[:left], False
            yield "val", text[left:], False
            left = max(0, left - len(text))


folder, source = os.path.join("data", name), {"name": input, "documents": count}
bar = tqdm(total=num_bytes, desc="encoding", unit="B", unit_scale=True)
with bar, Writer(folder, coder, source) as writer:
    for ids, sizes in texts.encoded(pieces(), coder):
        for split in ids:
            writer.append(split, ids[split], num_bytes=sizes[split])
        bar.update(sum(sizes.values()))
for split, tokens in writer.counts.items():
    print(f"{os.path.join(folder, split)}.bin: {tokens:,} tokens")
print(f"{coder.vocab_size:,} tokens in the vocabulary; {count:,} documents, {num_bytes:,} bytes")
