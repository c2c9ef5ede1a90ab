"""Text to token ids and back: characters, bytes, GPT-2's BPE. Each is a plain dict on disk.

CharTokenizer.from_text("abba").to_dict() == {"kind": "char", "chars": ["a", "b"], "special": []}
from_dict({"kind": "gpt2"}).encode("Hello world") == [15496, 995]
"""

import codecs
import functools
from collections.abc import Iterable

from core import UserError

UNKNOWN = "\ufffd"  # what an id that stands for nothing decodes to (padding of the vocabulary)


class Tokenizer:
    """What all three share. `vocab_size` ids; `special` maps names such as "<sep>" to their ids."""

    kind: str
    vocab_size: int
    special: dict[str, int]
    start_token: int  # what an empty prompt begins with

    def to_dict(self) -> dict:
        return {"kind": self.kind}

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8, which may end within a character: BPE and byte tokens can split one."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Text of any ids; never fails."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self):
        """A function id -> the text that is complete with it, for printing token by token."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: decoder.decode(self.decode_bytes([token]))


class CharTokenizer(Tokenizer):
    """One id a character: the special tokens first, then the characters in the order given."""

    kind = "char"

    def __init__(self, chars: Iterable[str], special: Iterable[str] = ()):
        self.chars = list(chars)
        self.special = {name: i for i, name in enumerate(special)}
        self.pieces = [*self.special, *self.chars]
        self.ids = {piece: i for i, piece in enumerate(self.pieces) if i >= len(self.special)}
        self.vocab_size = len(self.pieces)
        self.start_token = self.ids.get("\n", 0)

    @classmethod
    def from_text(cls, text: str, special: Iterable[str] = ()) -> "CharTokenizer":
        return cls(sorted(set(text)), special)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "chars": self.chars, "special": list(self.special)}

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; a UserError names those outside the vocabulary."""
        try:
            return [self.ids[char] for char in text]
        except KeyError:
            unknown = ", ".join(map(repr, sorted(set(text) - set(self.chars))))
            known = "".join(char for char in self.chars[:200] if char.isprintable())
            raise UserError(
                f"the text holds characters that this model has never seen: {unknown}; "
                f"it knows {len(self.chars)}: {known}"
            ) from None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        pieces = self.pieces
        text = "".join(pieces[i] if 0 <= i < len(pieces) else UNKNOWN for i in ids)
        return text.encode("utf-8")


class ByteTokenizer(Tokenizer):
    """One id a byte of UTF-8: any text, 256 ids."""

    kind = "byte"
    vocab_size = 256
    start_token = 10  # a line break

    def __init__(self):
        self.special = {}

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(bytes([i]) if 0 <= i < 256 else UNKNOWN.encode() for i in ids)


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding, 50,257 ids, by tiktoken, which fetches its two files once."""

    kind = "gpt2"
    vocab_size = 50257
    start_token = 50256  # <|endoftext|> stands between GPT-2's documents

    def __init__(self):
        self.special = {"<|endoftext|>": 50256}

    @functools.cached_property
    def bpe(self):
        """tiktoken's encoder, loaded at first use: training never needs it."""
        try:
            import tiktoken
        except ImportError:
            raise UserError("GPT-2's tokenizer needs tiktoken: pip install tiktoken") from None
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:  # tiktoken lets whatever its HTTP client raises through
            raise UserError(
                f"tiktoken could not download GPT-2's vocabulary ({type(error).__name__}). On a "
                'machine with a network run `python -c "import tiktoken; '
                "tiktoken.get_encoding('gpt2')\"` with TIKTOKEN_CACHE_DIR=some/folder, copy that "
                "folder here and set TIKTOKEN_CACHE_DIR to it."
            ) from error

    def encode(self, text: str) -> list[int]:
        """Ids of the text; "<|endoftext|>" in it becomes that token, as in nanoGPT's sample.py."""
        return self.bpe.encode(text, allowed_special=set(self.special))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        known = (i if 0 <= i < self.vocab_size else None for i in ids)
        pieces = (
            UNKNOWN.encode() if i is None else self.bpe.decode_single_token_bytes(i) for i in known
        )
        return b"".join(pieces)


def from_dict(saved: dict) -> Tokenizer:
    """The tokenizer that to_dict() described."""
    if saved.get("kind") == "char":
        return CharTokenizer(saved["chars"], saved.get("special", ()))
    for cls in (ByteTokenizer, GPT2Tokenizer):
        if saved.get("kind") == cls.kind:
            return cls()
    raise UserError(f"unknown tokenizer {saved.get('kind')!r}; known are char, byte and gpt2.")
