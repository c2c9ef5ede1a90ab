"""Whatever the input, it is read rightly or refused with one sentence: never a traceback."""

import json
import os
import string
from contextlib import contextmanager, suppress
from pathlib import Path

from configurator import configure

import pytest
import torch
from conftest import ROOT

from core import UserError, checkpoint, log
from core.batches import Batches
from core.dataset import Writer, read_meta
from core.extras import tables, texts
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.extras.moments import restore_optimizers
from core.tokenizer import END, UNK, ByteTokenizer, CharTokenizer, from_dict
from model import GPT, GPTConfig

hypothesis = pytest.importorskip("hypothesis", reason="the package hypothesis is not installed")
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

CASES = int(os.environ.get("FUZZ_CASES", 200))
cases = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize="FUZZ_CASES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@contextmanager
def one_sentence():
    """What a user did wrong is one line."""
    try:
        yield
    except UserError as error:
        assert str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder that all examples of a test share."""
    old, new = os.getcwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(new)
    yield new
    os.chdir(old)


def mangled(content: bytes):
    """The content with some bytes changed, cut or put in."""
    edit = st.tuples(st.integers(0, len(content)), st.integers(0, 3), st.binary(max_size=6))

    def apply(edits) -> bytes:
        changed = content
        for at, gone, new in edits:
            changed = changed[:at] + new + changed[at + gone :]
        return changed

    cut = st.integers(0, len(content)).map(lambda n: content[:n])
    return st.lists(edit, min_size=1, max_size=4).map(apply) | cut | st.binary(max_size=64)


# ---- settings ------------------------------------------------------------------------------------
NAMES = ["max_iters", "learning_rate", "dataset", "compile", "dropout", "n_layer", "seed", "top_p"]
VALUES = st.text(max_size=12) | st.integers().map(str) | st.floats().map(str) | JSON.map(repr)
WORDS = st.tuples(st.sampled_from([*NAMES, "lr", ""]) | st.text(max_size=8), VALUES)
ARGUMENT = WORDS.map(lambda pair: f"--{pair[0]}={pair[1]}") | st.text(max_size=8)


@cases
@given(st.lists(ARGUMENT, max_size=4))
@example([f"--max_iters={'9' * 5000}"])
@example([f"--compile={'[' * 5000}"])
def test_any_command_line(folder, arguments):
    if any(word in ("--help", "-h") or "hel".startswith(word[2:5] or "x") for word in arguments):
        return
    with one_sentence():
        found = configure(str(ROOT / "train.py"), GPTConfig, argv=arguments)
        assert type(found["max_iters"]) is int and found["max_iters"] >= 0
        assert type(found["learning_rate"]) is float and found["learning_rate"] > 0
        assert 0 <= found["dropout"] < 1 and found["n_layer"] >= 1
        assert found["compile"] in ("auto", True, False)


LINES = st.sampled_from(NAMES).flatmap(lambda name: JSON.map(lambda v: f"{name} = {v!r}"))


@cases
@given(st.lists(LINES | st.text(string.printable, max_size=20), max_size=4))
@example(["raise SystemExit(3)"])
@example([f"seed = 10 ** {10**4}"])
def test_any_config_file(folder, lines):
    source = "\n".join(lines)
    if "exit(" in source or "import" in source or "input" in source:
        return
    Path("config.py").write_text(source, encoding="utf-8")
    with one_sentence():
        found = configure(str(ROOT / "train.py"), GPTConfig, argv=["config.py"])
        assert type(found["max_iters"]) is int and type(found["dataset"]) is str


# ---- datasets ------------------------------------------------------------------------------------
def write_dataset(name: str) -> Path:
    with Writer(name, ByteTokenizer(), {"name": "toy"}) as writer:
        for split in ("train", "val"):
            writer.append(split, list(b"to be or not to be " * 5))
    return Path(name)


def open_dataset(name: str) -> None:
    data = Batches(name, block_size=8, batch_size=2, seed=1, device="cpu")
    x, y, _ = data.batch("train", 3)
    assert x.shape == y.shape and x.max() < data.tokenizer.vocab_size
    for x, _ in data.evaluation("val", 4, 2):
        assert x.max() < data.tokenizer.vocab_size


@cases
@given(st.data())
def test_any_bytes_as_meta_json(folder, data):
    path = write_dataset("bytes") / "meta.json"
    nested = st.just(b'{"tokenizer": ' + b"[" * 10**5)
    path.write_bytes(data.draw(mangled(path.read_bytes()) | nested))
    with one_sentence():
        open_dataset("bytes")


@cases
@given(st.sampled_from(["tokenizer", "dtype", "row_length", "train_tokens", "source"]), JSON)
def test_any_value_in_meta_json(folder, key, value):
    path = write_dataset("values") / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with one_sentence():
        open_dataset("values")


KINDS = st.sampled_from(["char", "byte", "gpt2", "hf"])
PARTS = {"kind": KINDS, "chars": JSON, "special": JSON, "json": JSON | st.text()}
TOKENIZER = st.fixed_dictionaries(PARTS)


@cases
@given(TOKENIZER)
def test_any_tokenizer_in_meta_json(folder, tokenizer):
    path = write_dataset("tokenizers") / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer": tokenizer}))
    with one_sentence():
        read_meta("tokenizers")
        open_dataset("tokenizers")


@cases
@given(st.sampled_from(["train.bin", "val.bin", "train.mask.bin"]), st.binary(max_size=300))
def test_any_bytes_as_tokens(folder, name, content):
    path = write_dataset("tokens")
    meta = json.loads((path / "meta.json").read_text())
    stated = {"fingerprints", "train_tokens", "val_tokens"}
    (path / "meta.json").write_text(json.dumps({k: meta[k] for k in meta.keys() - stated}))
    (path / name).write_bytes(content)
    with one_sentence():
        open_dataset("tokens")


# ---- checkpoints ---------------------------------------------------------------------------------
ARGS = dict(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=8)
MODEL = GPT(GPTConfig(**ARGS))


def state_with(**changes) -> dict:
    tokenizer = {"kind": "char", "chars": list("abcde"), "special": []}
    return {"model": MODEL.state_dict(), "model_args": ARGS, "tokenizer": tokenizer} | changes


def load_model() -> None:
    loaded = checkpoint.load("ckpt.pt")
    model = GPT.from_state_dict(loaded["model_args"], loaded["model"])
    tokenizer = checkpoint.load_tokenizer(loaded)
    assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()
    assert tokenizer.vocab_size > 0


@cases
@given(st.data())
def test_any_bytes_as_a_checkpoint(folder, data):
    torch.save(state_with(), "whole.pt")
    Path("ckpt.pt").write_bytes(data.draw(mangled(Path("whole.pt").read_bytes())))
    with one_sentence():
        load_model()


@cases
@given(st.sampled_from([*ARGS, "dropout", "bias", "rotary", "window", "colour"]), JSON)
def test_any_value_in_a_checkpoints_model_args(folder, name, value):
    torch.save(state_with(model_args={**ARGS, name: value}), "ckpt.pt")
    with one_sentence():
        load_model()


@cases
@given(st.sampled_from(["model", "model_args", "tokenizer", "config", "step"]), JSON)
def test_any_value_in_a_checkpoint(folder, name, value):
    torch.save(state_with(**{name: value}), "ckpt.pt")
    with one_sentence():
        load_model()


@cases
@given(st.lists(st.integers(0, 40), max_size=3), st.sampled_from(sorted(MODEL.state_dict())))
def test_any_shape_in_a_checkpoint(folder, shape, name):
    torch.save(state_with(model={**MODEL.state_dict(), name: torch.zeros(shape)}), "ckpt.pt")
    with one_sentence():
        load_model()


@cases
@given(st.sampled_from(["state", "param_groups", "both"]), JSON, JSON)
def test_any_optimizer_state_in_a_checkpoint(folder, key, value, other):
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(3))], "names": ["w"]}])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    saved = optimizer.state_dict() | ({key: value} if key != "both" else {"state": {0: other}})
    loaded = {"path": "x.pt", "optimizers": {"adamw": saved}, "scaler": {}}
    with one_sentence():
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        restore_optimizers(loaded, {"adamw": optimizer}, scaler)


# ---- logs ----------------------------------------------------------------------------------------
@cases
@given(st.data())
def test_any_bytes_as_a_log(folder, data):
    whole = b'{"config": {}}\n{"step": 1, "loss": 2.5}\n{"step": 2, "val_loss": 2.25}\n'
    Path("log.jsonl").write_bytes(data.draw(mangled(whole)) + b'\n{"step": 7, "loss": 1.5}\n')
    assert {"step": 7, "loss": 1.5} in log.read("log.jsonl")
    log.rewind("log.jsonl", 7)
    assert {"step": 7, "loss": 1.5} in log.read("log.jsonl")


# ---- texts ---------------------------------------------------------------------------------------
TEXT = st.text(max_size=60)


@cases
@given(TEXT, st.sampled_from(["", " ", END, UNK]))
def test_any_text_is_what_its_tokens_decode_to(folder, text, more):
    text = text + more + text
    for tokenizer in (ByteTokenizer(), CharTokenizer(set(text)), CharTokenizer(text, [END])):
        with suppress(UserError):
            ids = tokenizer.encode(text).tolist()
            assert tokenizer.decode(ids) == text and max(ids, default=-1) < tokenizer.vocab_size
            pieces = map(tokenizer.stream(), ids)
            assert "".join(pieces) == text


@cases
@given(TEXT)
def test_any_prompt(folder, text):
    for tokenizer in (ByteTokenizer(), CharTokenizer("abc", [END, UNK]), CharTokenizer("ab")):
        with one_sentence():
            assert all(0 <= i < tokenizer.vocab_size for i in tokenizer.encode_prompt(text))


@cases
@given(st.text(max_size=60))
def test_any_prompt_of_gpt2s(folder, folio_data, text):
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    tokenizer = GPT2Tokenizer()
    assert tokenizer.decode(tokenizer.encode_prompt(text)) == text
    assert "".join(map(tokenizer.stream(), tokenizer.encode_prompt(text))) == text


@cases
@given(st.lists(st.integers(-3, 60000), max_size=20))
def test_any_ids_decode(folder, ids):
    for saved in ({"kind": "byte"}, {"kind": "char", "chars": ["a", "é"], "special": [END]}):
        assert isinstance(from_dict(saved).decode(ids), str)


WHOLE = {
    "a.jsonl": b'{"text": "one"}\n{"text": "two\\n"}\n',
    "a.json": b'[{"text": "one"},\n {"text": null}]',
    "a.csv": b'text,label\n"one, two",1\nthree,0\n',
    "a.tsv": b"text\tlabel\none\t1\n",
    "a.txt": "One line.\nÉin Wort\n".encode(),
    "a.txt.gz": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcbH\xcd\xc9\xc9W(\xcf/\xcaI\x01\x00",
}


@pytest.mark.parametrize("name", WHOLE)
@cases
@given(data=st.data())
def test_any_bytes_as_a_text_file(folder, name, data):
    content = data.draw(mangled(WHOLE[name]))
    Path(name).write_bytes(content)
    with one_sentence():
        found = [["".join(document)] for document in texts.documents([name], "text", "utf-8")]
        assert all(isinstance(text, str) for (text,) in found)
        if name == "a.txt":
            decoded = content.decode("utf-8-sig")
            assert found == [[decoded.replace("\r\n", "\n").replace("\r", "\n")]]


@cases
@given(st.lists(st.text(max_size=12).filter(lambda text: "\0" not in text), min_size=1))
def test_rows_are_read_as_they_were_written(folder, rows):
    import csv

    with open("b.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"text": row}) + "\n")
    with open("b.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text"], *([row] for row in rows)])
    Path("b.json").write_text(json.dumps([{"text": row} for row in rows]))
    for name in ("b.jsonl", "b.csv", "b.json"):
        found = list(tables.rows_of(name)(name, "text", "utf-8"))
        wanted = [row for row in rows if row or name != "b.csv"]
        assert [text for text in found if text or name != "b.csv"] == wanted, name
