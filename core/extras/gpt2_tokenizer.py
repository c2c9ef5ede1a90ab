"""GPT-2's byte-pair encoding, by tiktoken, which downloads its two files once.

GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]
"""

import functools
from collections.abc import Iterable

import numpy as np

from core import UserError
from core.tokenizer import END, UNKNOWN, Tokenizer


class GPT2Tokenizer(Tokenizer):
    """50,257 ids. special: names of tokens beyond GPT-2's own, which take the next ids."""

    kind = "gpt2"
    end_token = start_token = 50256

    def __init__(self, special: Iterable[str] = ()):
        self.special = {name: 50256 + i for i, name in enumerate((END, *special))}
        self.vocab_size = 50256 + len(self.special)

    def to_dict(self) -> dict:
        added = list(self.special)[1:]
        return {"kind": self.kind, "special": added} if added else {"kind": self.kind}

    @functools.cached_property
    def bpe(self):
        """tiktoken's encoder, loaded at first use: training never needs it."""
        import tiktoken

        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:  # it lets through whatever its HTTP client raises
            raise UserError(
                f"tiktoken cannot load GPT-2's vocabulary ({type(error).__name__}). Without a "
                "network, prepare texts with --tokenizer=char, or set TIKTOKEN_CACHE_DIR to a "
                "folder that tiktoken filled where there is one (there: TIKTOKEN_CACHE_DIR=FOLDER "
                "python prepare_shakespeare.py --tokenizer=gpt2)."
            ) from error

    def encode(self, text: str) -> np.ndarray:
        return self.bpe.encode_to_numpy(text, disallowed_special=())

    def encode_prompt(self, text: str) -> list[int]:
        return self.bpe.encode(text, allowed_special={END})

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        piece = self.bpe.decode_single_token_bytes
        names = {i: name.encode() for name, i in self.special.items()}
        return b"".join(piece(i) if 0 <= i < 50256 else names.get(i, UNKNOWN.encode()) for i in ids)

    def symbols(self) -> list:
        return [*range(50256), *self.special]
