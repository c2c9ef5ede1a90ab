"""Tokenizers: round trips, plain dicts, what is unknown, text that arrives token by token."""

import json

import pytest

from core import UserError
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.tokenizer import PAD, UNK, ByteTokenizer, CharTokenizer, from_dict

TEXT = "Héllo, wörld — 你好 🙂\n"


@pytest.fixture
def gpt2(folio_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    return GPT2Tokenizer()


def round_trip(tokenizer):
    ids = tokenizer.encode(TEXT).tolist()
    assert tokenizer.decode(ids) == TEXT
    assert 0 <= min(ids) and max(ids) < tokenizer.vocab_size
    again = from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.encode(TEXT).tolist() == ids and again.vocab_size == tokenizer.vocab_size
    piece = tokenizer.stream()
    assert "".join(map(piece, ids)) == TEXT  # characters come whole, however many tokens they take
    padded = [ids[0], 10**6, tokenizer.vocab_size, ids[1], -1]
    assert isinstance(tokenizer.decode(padded), str)  # ids that stand for nothing never fail


def test_characters():
    tokenizer = CharTokenizer(sorted(set(TEXT)))
    assert tokenizer.vocab_size == len(set(TEXT))
    round_trip(tokenizer)
    with pytest.raises(UserError, match="vocabulary: 'q', 'ß'"):
        tokenizer.encode("Hößq")


def test_special_tokens_come_first_and_are_never_mistaken_for_text():
    tokenizer = CharTokenizer("ab<>pds", ["<pad>", "<sep>"])
    assert tokenizer.special == {"<pad>": 0, "<sep>": 1}
    assert tokenizer.encode("ab").tolist() == [2, 3]
    assert min(tokenizer.encode("<pad>")) > 1
    assert tokenizer.decode([2, 1, 3]) == "a<sep>b"
    assert from_dict(tokenizer.to_dict()).special == tokenizer.special


def test_characters_outside_the_vocabulary_are_unk_where_there_is_one():
    tokenizer = CharTokenizer("ab", [PAD, UNK])
    assert tokenizer.encode("aßb🙂").tolist() == [2, 1, 3, 1]


def test_bytes():
    round_trip(ByteTokenizer())


def test_gpt2_bpe(gpt2):
    round_trip(gpt2)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode_prompt("a<|endoftext|>") == [64, 50256]
    assert 50256 not in gpt2.encode("a<|endoftext|>")  # in a text it is text


def test_gpt2_without_its_files_or_a_network_says_what_serves(script, tmp_path):
    (tmp_path / "text.txt").write_text("some text")
    offline = dict(TIKTOKEN_CACHE_DIR="", HTTPS_PROXY="http://127.0.0.1:9")
    options = ("--tokenizer=gpt2", "--input=text.txt")
    result = script("prepare_shakespeare.py", *options, status=2, **offline)
    assert "TIKTOKEN_CACHE_DIR" in result.stderr


def test_an_unknown_kind_is_one_sentence():
    with pytest.raises(UserError, match="'wordpiece'"):
        from_dict({"kind": "wordpiece"})
