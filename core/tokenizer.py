"""Text to token ids and back: characters, bytes, GPT-2's BPE. Each is a plain dict on disk.

CharTokenizer.from_text("abba").to_dict() == {"kind": "char", "chars": ["a", "b"], "special": []}
from_dict({"kind": "gpt2"}).encode("Hello world") == [15496, 995]
"""

import codecs
import functools
from collections.abc import Iterable

import numpy as np

from core import UserError

END = "<|endoftext|>"  # the token between documents, under GPT-2's name
PAD, SEP, EOS, UNK = (
    "<pad>",
    "<sep>",
    "<eos>",
    "<unk>",
)  # filling, end of a turn, of a dialogue, ...
EXTRACT = "<extract>"  # after it stands the label of the text before it: <label 0>, <label 1>, ...
UNKNOWN = "\ufffd"  # what an id that stands for nothing decodes to (padding of the vocabulary)


class Tokenizer:
    """What all share: encode to `vocab_size` ids, decode any ids, and never fail at that."""

    kind: str
    vocab_size: int
    special: dict[str, int]  # ids that stand for no text, by name: "<sep>"
    end_token: int | None  # stands after each document of several
    start_token: int  # what an empty prompt begins with

    def to_dict(self) -> dict:
        return {"kind": self.kind}

    def symbols(self) -> list:
        """What each id stands for, to find the same token in another vocabulary."""
        raise NotImplementedError

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of a text in which special tokens have no meaning, without a list of them."""
        return np.array(self.encode(text))

    def byte_lengths(self) -> np.ndarray:
        """How many bytes of UTF-8 each id stands for, (vocab_size,); 0 for those of no text."""
        raise NotImplementedError

    def ranks(self) -> dict[bytes, int]:
        """The bytes that each id stands for, and the order in which byte pairs merge."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self):
        """A function id -> the text that is complete with it: BPE and bytes split characters."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: decoder.decode(self.decode_bytes([token]))


class CharTokenizer(Tokenizer):
    """One id a character: the special tokens first, then the characters in the order given.

    Other characters are an error, unless <unk> is one of the special tokens: then they are that.
    """

    kind = "char"

    def __init__(self, chars: Iterable[str], special: Iterable[str] = ()):
        self.chars = list(chars)
        self.special = {name: i for i, name in enumerate(special)}
        self.pieces = [*self.special, *self.chars]
        self.ids = {piece: i for i, piece in enumerate(self.pieces) if i >= len(self.special)}
        self.vocab_size = len(self.pieces)
        self.end_token = self.special.get(END)
        self.start_token = self.ids.get("\n", 0) if self.end_token is None else self.end_token

    @classmethod
    def from_text(cls, text: str, special: Iterable[str] = ()) -> "CharTokenizer":
        return cls(sorted(set(text)), special)

    def symbols(self) -> list:
        return self.pieces

    def to_dict(self) -> dict:
        return {"kind": self.kind, "chars": self.chars, "special": list(self.special)}

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; a UserError names those outside the vocabulary."""
        if UNK in self.special:
            return [self.ids.get(char, self.special[UNK]) for char in text]
        try:
            return [self.ids[char] for char in text]
        except KeyError:
            unknown = ", ".join(map(repr, sorted(set(text) - set(self.chars))))
            known = "".join(char for char in self.chars[:200] if char.isprintable())
            raise UserError(
                f"characters outside the vocabulary: {unknown}; known: {known}"
            ) from None

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The id of each code point; <unk>'s, or else -1, where there is none."""
        size, unknown = max(map(ord, self.ids), default=0) + 2, self.special.get(UNK, -1)
        table = np.full(size, unknown, np.int32)
        table[[ord(char) for char in self.ids]] = list(self.ids.values())
        return table

    def encode_array(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self.table[np.minimum(points, len(self.table) - 1)]
        return ids if ids.min(initial=0) >= 0 else np.array(self.encode(text))  # which complains

    def byte_lengths(self) -> np.ndarray:
        lengths = [len(piece.encode()) for piece in self.pieces]
        return np.array([0] * len(self.special) + lengths[len(self.special) :])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        pieces = self.pieces
        text = "".join(pieces[i] if 0 <= i < len(pieces) else UNKNOWN for i in ids)
        return text.encode("utf-8")


class ByteTokenizer(Tokenizer):
    """One id a byte of UTF-8: any text, 256 ids."""

    kind = "byte"
    vocab_size = 256
    special = {}  # noqa: RUF012 (a constant)
    end_token = 0  # a byte that no text holds
    start_token = 10  # a line break

    def symbols(self) -> list:
        return list(range(256))

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def byte_lengths(self) -> np.ndarray:
        return np.array([0] + [1] * 255)

    def ranks(self) -> dict[bytes, int]:
        return {bytes([i]): i for i in range(256)}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(bytes([i]) if 0 <= i < 256 else UNKNOWN.encode() for i in ids)


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding, 50,257 ids, by tiktoken, which fetches its two files once.

    special: names of tokens beyond GPT-2's own, which take the next ids.
    """

    kind = "gpt2"
    end_token = start_token = 50256

    def __init__(self, special: Iterable[str] = ()):
        self.special = {name: 50256 + i for i, name in enumerate((END, *special))}
        self.vocab_size = 50256 + len(self.special)

    def to_dict(self) -> dict:
        more = list(self.special)[1:]
        return {"kind": self.kind, "special": more} if more else {"kind": self.kind}

    def symbols(self) -> list:
        return [*range(50256), *self.special]

    @functools.cached_property
    def bpe(self):
        """tiktoken's encoder, loaded at first use: training never needs it."""
        try:
            import tiktoken

            return tiktoken.get_encoding("gpt2")
        except Exception as error:  # it lets through whatever its HTTP client raises
            raise UserError(
                f"tiktoken can't load GPT-2's vocabulary ({type(error).__name__}): without a "
                "network, set TIKTOKEN_CACHE_DIR to a folder that holds what it downloads. To fill "
                "one where there is a network: TIKTOKEN_CACHE_DIR=FOLDER python -c "
                "\"import tiktoken; tiktoken.get_encoding('gpt2')\""
            ) from error

    def encode(self, text: str) -> list[int]:
        """Ids of the text; "<|endoftext|>" in it becomes that token, as in nanoGPT's sample.py."""
        return self.bpe.encode(text, allowed_special={END})

    def encode_array(self, text: str) -> np.ndarray:
        return self.bpe.encode_to_numpy(text, disallowed_special=())

    def byte_lengths(self) -> np.ndarray:
        return np.array([*map(len, self.ranks()), *[0] * len(self.special)])

    def ranks(self) -> dict[bytes, int]:
        return {self.bpe.decode_single_token_bytes(i): i for i in range(50256)}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        piece = self.bpe.decode_single_token_bytes
        names = {i: name.encode() for name, i in self.special.items()}
        return b"".join(piece(i) if 0 <= i < 50256 else names.get(i, UNKNOWN.encode()) for i in ids)


def from_dict(saved: dict) -> Tokenizer:
    """The tokenizer that to_dict() described."""
    kind = saved.get("kind")
    if kind == "char":
        return CharTokenizer(saved["chars"], saved["special"])
    if kind not in ("byte", "gpt2"):
        raise UserError(f"unknown tokenizer {kind!r}: char, byte and gpt2 are known.")
    return ByteTokenizer() if kind == "byte" else GPT2Tokenizer(saved.get("special", ()))
