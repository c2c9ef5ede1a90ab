"""Text to token ids and back: characters, bytes. Each tokenizer is a plain dict on disk.

GPT-2's BPE is in core/extras/gpt2_tokenizer.py, any tokenizer.json in core/extras/hf_tokenizer.py.

CharTokenizer("ab").to_dict() == {"kind": "char", "chars": ["a", "b"], "special": []}
from_dict({"kind": "gpt2"}).encode("Hello world").tolist() == [15496, 995]
"""

import codecs
from collections.abc import Iterable

import numpy as np

from core import UserError

END = "<|endoftext|>"  # the token between documents, by GPT-2's name
PAD, UNK = "<pad>", "<unk>"  # padding; a character outside the vocabulary
UNKNOWN = "\ufffd"  # what an id without meaning decodes to, such as the vocabulary's padding


class Tokenizer:
    """What all have: they encode to ids below `vocab_size`, and decode any ids without an error."""

    kind: str
    vocab_size: int
    special: dict[str, int]  # name -> id of the tokens that are not text
    end_token: int | None  # stands after each of several documents
    start_token: int  # what an empty prompt starts with

    @property
    def unknown(self) -> int | None:
        """The token of text outside the vocabulary."""
        return self.special.get(UNK)

    @property
    def unsampled(self) -> tuple[int, ...]:
        """The ids that stand for no text, which is why they are never sampled."""
        return tuple(self.special[name] for name in (PAD, UNK) if name in self.special)

    def to_dict(self) -> dict:
        return {"kind": self.kind}

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, in which the names of special tokens are text like any other."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a prompt, in which "<|endoftext|>" is GPT-2's token, as in nanoGPT."""
        return self.encode(text).tolist()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self, context: Iterable[int] = ()):
        """A function id -> the text that is complete with it: BPE and bytes split characters.

        context: the tokens before, whose text was shown.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: decoder.decode(self.decode_bytes([token]))

    def symbols(self) -> list:
        """What each id stands for, to find the same token in another vocabulary."""
        return [self.decode_bytes([i]) for i in range(self.vocab_size)]


class CharTokenizer(Tokenizer):
    """One id per character: the special tokens first, then the characters in the order given.

    Other characters are <unk> if that is one of the special tokens, and else an error.
    """

    kind = "char"

    def __init__(self, chars: Iterable[str], special: Iterable[str] = ()):
        self.chars = list(chars)
        self.special = {name: i for i, name in enumerate(special)}
        self.pieces = [*self.special, *self.chars]
        self.ids = {char: i for i, char in enumerate(self.chars, start=len(self.special))}
        self.vocab_size = len(self.pieces)
        self.end_token = self.special.get(END)
        self.start_token = self.ids.get("\n", 0) if self.end_token is None else self.end_token
        # the id of each code point, that of <unk>, or -1; the last one is for all beyond
        unknown = self.special.get(UNK, -1)
        self.table = np.full(max(map(ord, self.ids), default=0) + 2, unknown, np.int32)
        self.table[[ord(char) for char in self.ids]] = list(self.ids.values())

    def to_dict(self) -> dict:
        return {"kind": self.kind, "chars": self.chars, "special": list(self.special)}

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self.table[np.minimum(points, len(self.table) - 1)]
        if ids.min(initial=0) < 0:
            unknown = ", ".join(map(repr, sorted(set(text) - set(self.chars))))
            known = "".join(char for char in self.chars[:200] if char.isprintable())
            raise UserError(f"characters outside the vocabulary: {unknown}; known: {known}")
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        size = self.vocab_size
        return "".join(self.pieces[i] if 0 <= i < size else UNKNOWN for i in ids).encode()


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8: any text, 256 ids."""

    kind = "byte"
    vocab_size = 256
    special = {}  # noqa: RUF012 (a constant)
    end_token = 0  # a byte that no text has
    start_token = 10  # a line break

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(bytes([i]) if 0 <= i < 256 else UNKNOWN.encode() for i in ids)


def from_dict(saved: dict) -> Tokenizer:
    """The tokenizer that to_dict() described; UserError if nothing did."""
    kind, chars, special = (saved.get(name, []) for name in ("kind", "chars", "special"))
    are_text = all(isinstance(piece, str) and piece for piece in [*chars, *special])
    if not are_text or any(len(char) != 1 for char in chars):
        raise UserError(f"the tokenizer is damaged: {str(saved)[:60]}")
    if kind == "char":
        return CharTokenizer(chars, special)
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        from core.extras.gpt2_tokenizer import GPT2Tokenizer

        return GPT2Tokenizer(special)
    if kind == "hf" and isinstance(saved.get("json"), str):
        from core.extras.hf_tokenizer import HFTokenizer

        return HFTokenizer(saved["json"], special)
    raise UserError(f"unknown tokenizer {kind!r}: char, byte, gpt2 and hf are known.")
