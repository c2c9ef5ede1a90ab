"""Write data/shakespeare_char/ (characters) or data/shakespeare/ (GPT-2 BPE): tiny Shakespeare.

    python prepare_shakespeare.py
    python prepare_shakespeare.py --tokenizer=gpt2
    python prepare_shakespeare.py --input=any_text.txt

The download is kept beside the dataset, as input.txt. Without a network give any text as --input.
"""

import os
from typing import Literal

from configurator import configure

from core import UserError
from core.dataset import Writer
from core.download import download
from core.tokenizer import CharTokenizer, from_dict

# ---- settings ------------------------------------------------------------------------------------
tokenizer: Literal["char", "gpt2"] = "char"  # a token is a character, or one of GPT-2's BPE
input = ""  # a UTF-8 text file to take instead of the download
url = (  # where the text is downloaded from: addresses with spaces between them, tried in turn
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt "
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt "
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt"
)
sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # "" = any text's
globals().update(configure(__file__))

# ---- the text ------------------------------------------------------------------------------------
folder = os.path.join("data", "shakespeare_char" if tokenizer == "char" else "shakespeare")
path = input or os.path.join(folder, "input.txt")
if not input and not os.path.exists(path):
    download(url, path, sha256)
try:
    with open(path, encoding="utf-8-sig") as file:  # a byte order mark is no text
        text = file.read()
except UnicodeDecodeError:
    raise UserError(f"{path} is not UTF-8 text: give it to prepare_text.py instead.") from None
if len(text) < 2:
    raise UserError(f"{path} is empty: nothing to train on.")

# ---- the tokens: the first 90% of the characters train, the rest validate, as in nanoGPT ---------
coder = CharTokenizer(sorted(set(text))) if tokenizer == "char" else from_dict({"kind": "gpt2"})
cut = int(len(text) * 0.9)
with Writer(folder, coder, {"name": os.path.basename(input) or url.split()[0]}) as writer:
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        writer.append(split, coder.encode(part), num_bytes=len(part.encode()))
for split, count in writer.counts.items():
    print(f"{os.path.join(folder, split)}.bin: {count:,} tokens")
print(f"{coder.vocab_size:,} tokens in the vocabulary")
