"""Write data/shakespeare_char/ (characters) or data/shakespeare/ (GPT-2 BPE): tiny Shakespeare.

    python prepare_shakespeare.py
    python prepare_shakespeare.py --tokenizer=gpt2
    python prepare_shakespeare.py --input=my_copy.txt

Without a network and without --input it takes English text that comes with Python instead, says
so loudly, and the next run that can download replaces it.
"""

import hashlib
import os
from typing import Literal

from tqdm import tqdm

from configurator import configure
from core import UserError
from core.dataset import Writer, read_meta
from core.download import NoNetwork, fetch
from core.tokenizer import CharTokenizer, GPT2Tokenizer

# ---- settings ------------------------------------------------------------------------------------
tokenizer: Literal["char", "gpt2"] = "char"  # a token is a character, or one of GPT-2's BPE
input = ""  # a UTF-8 text file to take instead of the download
url = (  # where the text is downloaded from
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
sha256 = (  # what must arrive, "" = anything
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
)
globals().update(configure(__file__))

# ---- the text: --input, an earlier download, the network, or what Python carries -----------------
folder = os.path.join("data", "shakespeare_char" if tokenizer == "char" else "shakespeare")
path = input or os.path.join(folder, "input.txt")
fallback = False
if input and not os.path.isfile(input):
    raise UserError(f"--input={input}: there is no such file.")
if not input and not os.path.exists(path):
    try:
        fetch(url, path, sha256 or None, progress=tqdm)
    except NoNetwork as error:
        if os.path.exists(os.path.join(folder, "train.bin")):
            print(f"{error} {folder} stays as it is: {read_meta(folder)['source']['name']}.")
            raise SystemExit(0) from None
        fallback = True
        print(
            f"\n*** {error}\n*** NOT SHAKESPEARE: taking the language reference that comes with "
            "Python instead.\n*** Run again with a network, or give a text with --input=FILE.\n"
        )
if fallback:
    from pydoc_data.topics import topics

    text, source = "\n".join(topics[key] for key in sorted(topics)), "Python's language reference"
else:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}).") from None
    source = os.path.basename(input) if input else url
if len(text) < 2:
    raise UserError(f"{path} is empty: nothing to train on.")

# ---- the tokens: the first 90% of the characters train, the rest validate, as in nanoGPT ---------
coder = CharTokenizer.from_text(text) if tokenizer == "char" else GPT2Tokenizer()
digest = hashlib.sha256(text.encode()).hexdigest()
with Writer(folder, coder, {"name": source, "sha256": digest, "fallback": fallback}) as writer:
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        writer.append(split, coder.encode(part))
for split, count in writer.counts.items():
    print(f"{os.path.join(folder, split)}.bin: {count:,} tokens")
print(f"{coder.vocab_size:,} tokens in the vocabulary; the text is {source}")
