"""Any tokenizer.json, by Hugging Face's `tokenizers`, or one that is trained on a text.

train(["some text"], 8000).to_dict() == {"kind": "hf", "json": the text of a tokenizer.json}

Its tokens' names say what they are for. A document ends with the first of ENDS that is a special
token; an empty prompt starts with the first of STARTS, else with the token that ends documents;
unknown text and padding are never sampled. Other files of the folder are not asked.
"""

from collections.abc import Iterable

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from core import UserError
from core.tokenizer import END, PAD, UNK, UNKNOWN, Tokenizer

ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|im_end|>")
STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "[CLS]")
UNKNOWNS, PADS = (UNK, "[UNK]"), (PAD, "[PAD]", "<|pad|>")
SPECIAL = (*ENDS, *STARTS, *UNKNOWNS, *PADS, "[MASK]")


class HFTokenizer(Tokenizer):
    """text: of a tokenizer.json. special: names of tokens beyond its own, which take the next ids.

    What it changes in a text, such as capitals or spaces, stays changed when it decodes.
    """

    kind = "hf"

    def __init__(self, text: str, special: Iterable[str] = ()):
        try:
            self.backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # it raises no narrower one
            raise UserError(f"the tokenizer.json is damaged: {error}.") from None
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.add_special_tokens(list(special))
        # names in a text are text; not saved in the JSON
        self.backend.encode_special_tokens = True
        self.ids = self.backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self.ids.values(), default=-1) + 1  # some may have no token
        if not 0 < self.vocab_size < 2**24:
            raise UserError(f"the tokenizer.json is damaged: {self.vocab_size:,} tokens.")
        added = self.backend.get_added_tokens_decoder()
        self.special = {token.content: i for i, token in sorted(added.items()) if token.special}
        self.end_token = self.first(ENDS)
        start = self.first(STARTS)
        if start is None:
            start = self.end_token
        self.start_token = self.ids.get("\n", 0) if start is None else start

    def first(self, names: Iterable[str]) -> int | None:
        return next((self.special[name] for name in names if name in self.special), None)

    @property
    def unknown(self) -> int | None:
        return self.first(UNKNOWNS)

    @property
    def unsampled(self) -> tuple[int, ...]:
        named = {self.special[name] for name in (*UNKNOWNS, *PADS) if name in self.special}
        return tuple(sorted(named | set(range(self.vocab_size)) - set(self.ids.values())))

    def to_dict(self) -> dict:
        return {"kind": self.kind, "json": self.backend.to_str()}

    def encode(self, text: str) -> np.ndarray:
        try:  # _fast: it does not keep the place of each token in the text
            encoded = self.backend.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:  # such as a text of unknown words without a token for them
            raise UserError(f"the tokenizer cannot encode {text[:40]!r}: {error}.") from None
        return np.array(encoded[0].ids, np.int32)

    def encode_prompt(self, text: str) -> list[int]:
        """Here the names of all special tokens are these tokens."""
        self.backend.encode_special_tokens = False
        try:
            return self.encode(text).tolist()
        finally:
            self.backend.encode_special_tokens = True

    def decode(self, ids: Iterable[int]) -> str:
        known = [i for i in ids if 0 <= i < self.vocab_size]
        return self.backend.decode(known, skip_special_tokens=False)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self.decode(ids).encode()

    def stream(self, context: Iterable[int] = ()):
        """Tokens are decoded after those before them: alone, many lose the space before a word.

        tokenizers' own DecodeStream does the same, but raises where bytes are not UTF-8.
        """
        window = list(context)  # from its start, which is not within a character
        shown = len(window)  # so many of them

        def piece(token: int) -> str:
            nonlocal window, shown
            window.append(token)
            text = self.decode(window)
            if text.endswith(UNKNOWN):  # the rest of a character is still to come
                return ""
            new = text[len(self.decode(window[:shown])) :]
            window = window[shown:]
            shown = len(window)
            return new

        return piece

    def symbols(self) -> list:
        return [self.backend.id_to_token(i) for i in range(self.vocab_size)]


def check_size(vocab_size: int) -> None:
    if vocab_size < 257:
        raise UserError(
            f"--vocab_size={vocab_size} is too small: at least 257, the bytes and {END}."
        )


def train(texts: Iterable[str], vocab_size: int) -> HFTokenizer:
    """A byte-level BPE in GPT-2's manner, a function of the texts; <|endoftext|> has the id 0.

    It has fewer tokens where the texts do not give as many.
    """
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return HFTokenizer(backend.to_str())


def byte_level(model: models.BPE, words: bool = True) -> tokenizers.Tokenizer:
    """A BPE of bytes in GPT-2's spelling; words: no token has parts of two of GPT-2's words."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    backend.decoder = decoders.ByteLevel()
    return backend


def from_bpe_files(vocab: str, merges: str, added: list[str]) -> HFTokenizer:
    """Of a byte-level BPE's vocab.json and merges.txt; added: names of more tokens."""
    try:
        backend = byte_level(models.BPE.from_file(vocab, merges))
    except Exception as error:  # it raises no narrower one
        raise UserError(f"{vocab} or {merges} is damaged: {error}.") from None
    return HFTokenizer(backend.to_str(), known_names(backend) + added)


def from_wordpiece_file(vocab: str, config: dict, added: list[str]) -> HFTokenizer:
    """Of BERT's vocab.txt, a token per line; config: of its tokenizer_config.json."""
    try:
        backend = tokenizers.Tokenizer(models.WordPiece.from_file(vocab, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
    except Exception as error:  # it raises no narrower one
        raise UserError(f"{vocab} or its tokenizer_config.json is damaged: {error}.") from None
    if backend.token_to_id("[UNK]") is None:
        raise UserError(f"{vocab} is not BERT's: it has no [UNK].")
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return HFTokenizer(backend.to_str(), known_names(backend) + added)


def known_names(backend: tokenizers.Tokenizer) -> list[str]:
    return [name for name in SPECIAL if backend.token_to_id(name) is not None]
