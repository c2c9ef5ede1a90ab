"""Files of every kind to datasets: nothing lost, nothing joined, nothing half-made."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY

from core import texts
from core.dataset import read_meta
from core.tokenizer import END, ByteTokenizer, CharTokenizer, GPT2Tokenizer, from_dict


@pytest.fixture
def bpe(folio_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    return GPT2Tokenizer()


def read(folder, split: str) -> np.ndarray:
    meta = read_meta(str(folder))
    return np.fromfile(folder / f"{split}.bin", meta["dtype"])


def texts_of(folder) -> dict[str, list[str]]:
    """split -> the documents that its end-of-text tokens separate."""
    tokenizer, found = from_dict(read_meta(str(folder))["tokenizer"]), {}
    for split in ("train", "val"):
        ids = read(folder, split)
        ends = np.flatnonzero(ids == tokenizer.end_token)
        assert len(ids) == 0 or ends[-1] == len(ids) - 1
        parts = np.split(ids, ends + 1)[:-1]
        found[split] = [tokenizer.decode(part[:-1]) for part in parts]
    return found


DOCUMENTS = [
    f"Document {i}:\n\n   it's number {i * i}, naïve 你好 <|endoftext|>\n" for i in range(60)
]


def write_jsonl(path):
    with (gzip.open if path.name.endswith("gz") else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": d, "id": i}) + "\n" for i, d in enumerate(DOCUMENTS))


def write_csv(path):
    import csv

    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(DOCUMENTS))


def write_parquet(path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": DOCUMENTS, "id": list(range(60))}), path)


def write_folder(path):
    (path / "deep" / ".git").mkdir(parents=True)
    (path / "deep" / ".git" / "config").write_text("hidden")
    (path / "picture.png").write_bytes(b"\x89PNG\r\n\0\0")
    for i, text in enumerate(DOCUMENTS):
        folder = path if i % 2 else path / "deep"
        (folder / f"{i}.md").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("tokenizer", ["gpt2", "char", "byte"])
@pytest.mark.parametrize("kind", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet", "a"])
def test_each_document_is_there_once_and_whole(bpe, script, tmp_path, kind, tokenizer):
    writers = {"csv": write_csv, "parquet": write_parquet, "a": write_folder}
    writers.get(kind.split(".")[-1], write_jsonl)(tmp_path / kind)
    script("prepare_text.py", f"--input={kind}", f"--tokenizer={tokenizer}")
    found = texts_of(tmp_path / "data" / "a")
    if tokenizer == "char":  # the end's name, spelled out in a text, is no end
        coder = from_dict(read_meta(str(tmp_path / "data" / "a"))["tokenizer"])
        assert coder.special == {END: 0}
    assert sorted(found["train"] + found["val"]) == sorted(DOCUMENTS)
    assert 1 <= len(found["val"]) <= 15


def test_a_glob_and_a_single_document(bpe, script, tmp_path, folio_data):
    write_folder(tmp_path / "a")
    assert "add --name" in script("prepare_text.py", "--input=a/*.md", status=2).stderr
    script("prepare_text.py", "--input=a/*.md", "--name=half", "--tokenizer=byte")
    found = texts_of(tmp_path / "data" / "half")
    assert sorted(found["train"] + found["val"]) == sorted(DOCUMENTS[1::2])
    # one document is split where nanoGPT splits it, into as many tokens
    text = folio_data("tinyshakespeare.txt")
    script("prepare_text.py", f"--input={text}")
    folder = tmp_path / "data" / "tinyshakespeare"
    assert (len(read(folder, "train")), len(read(folder, "val"))) == (301_966, 36_059)
    script("prepare_text.py", f"--input={text}", "--tokenizer=char")
    assert (len(read(folder, "train")), len(read(folder, "val"))) == (1_003_854, 111_540)


def test_pieces_give_the_tokens_of_the_whole(bpe, folio_data, monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 1000)
    monkeypatch.setattr(texts, "BATCH", 3000)
    text = folio_data("tinyshakespeare.txt").read_text()[:200_000]
    text += "  \n\n \t x\n\n\n  y 'll \x1c\x1c z　　w don't\r\n \r\n" * 200 + "这" * 5000
    pieces = list(texts.cut_long(text))
    assert "".join(pieces) == text and len(pieces) > 100
    parts = [ids["train"] for ids, _ in texts.encoded((("train", p, False) for p in pieces), bpe)]
    assert np.concatenate(parts).tolist() == bpe.bpe.encode_ordinary(text)


def test_names_of_special_tokens_in_a_text_are_text(bpe):
    for text in [*DOCUMENTS[:3], "", "\U0001f600 x"]:
        pieces = [("train", text, True)]
        chars = CharTokenizer.from_text("".join(DOCUMENTS) + "\U0001f600", ["<a>", END])
        for tokenizer in (chars, ByteTokenizer(), bpe):
            [(ids, num_bytes)] = texts.encoded(pieces, tokenizer)
            assert tokenizer.decode(ids["train"][:-1]) == text
            assert ids["train"][-1] == tokenizer.end_token
            assert num_bytes == {"train": len(text.encode())}
        assert ids["train"].tolist() == [*bpe.bpe.encode_ordinary(text), 50256]


def test_the_split_depends_on_the_seed_and_fills_both_sides(script, tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    found = []
    for seed in (1, 1, 2):
        options = ("--tokenizer=byte", f"--seed={seed}", "--val_fraction=0.3")
        script("prepare_text.py", "--input=a.jsonl", *options)
        found.append(texts_of(tmp_path / "data" / "a")["val"])
    assert found[0] == found[1] != found[2] and 8 <= len(found[0]) <= 30
    assert [texts.split_of(i, 0.0, 0) for i in range(3)] == ["val", "train", "train"]


def test_training_on_it(bpe, script, tmp_path):
    write_folder(tmp_path / "notes")
    script("prepare_text.py", "--input=notes", "--tokenizer=char")
    train = [*TINY, "--dataset=notes", "--max_iters=20", "--compile=False", "--out_dir=out/notes"]
    assert "tokens of notes" in script("train.py", *train).stdout
    assert script("sample.py", "--start=", "--num_samples=1", "--max_new_tokens=20").stdout


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "0 characters"),
        ("a.txt", b"x", "1 characters"),
        ("a.txt", b"text\0binary" * 100, "binary"),
        ("a.txt", "你好".encode("gb18030") * 50, "not UTF-8"),
        ("a.txt", b"long enough \n" * 200_000 + b"\xff", "not UTF-8"),
        ("a.txt", b"long enough \n" * 200_000 + b"\0", "binary"),
        ("a.jsonl", b'{"body": "x"}\n', "--column names one of body"),
        ("a.jsonl", b'{"text": "x"}\n{"te', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 has no text 'text'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 7}\n', "line 2 has no text 'text'"),
        ("a.csv", b"body,id\nx,1\n", "--column names one of body, id"),
        ("a.parquet", b"PAR1 it is not", "no parquet"),
        ("a.txt.gz", b"not gzip", "is damaged"),
        ("a.txt.gz", gzip.compress(b"cut short" * 1000, mtime=0)[:-20], "is damaged"),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)[:10] + b"\xff" * 50, "is damaged"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(script, tmp_path, name, content, sentence):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    said = script("prepare_text.py", f"--input={name}", "--tokenizer=byte", status=None)
    assert said.returncode == 2 and "Traceback" not in said.stderr, said.stderr
    assert sentence in said.stderr.splitlines()[-1]
    assert not (tmp_path / "data" / "a" / "train.bin").exists()


def test_a_column_that_is_no_text_is_one_sentence(script, tmp_path):
    write_parquet(tmp_path / "a.parquet")
    for column in ("id", "body"):
        command = ("prepare_text.py", "--input=a.parquet", f"--column={column}")
        said = script(*command, "--tokenizer=byte", status=None)
        assert said.returncode == 2 and "--column names one of text" in said.stderr


def test_half_a_character_as_json_can_spell_it_is_a_question_mark(script, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n')
    script("prepare_text.py", "--input=a.jsonl", "--tokenizer=byte")
    assert texts_of(tmp_path / "data" / "a") == {"val": ["cut ?"], "train": ["whole \U0001f600"]}


def test_bytes_of_each_split_are_those_of_its_texts(script, tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    script("prepare_text.py", "--input=a.jsonl", "--tokenizer=char")
    meta, found = read_meta(str(tmp_path / "data" / "a")), texts_of(tmp_path / "data" / "a")
    for split in ("train", "val"):
        assert meta[f"{split}_bytes"] == sum(len(text.encode()) for text in found[split])


def test_no_input_is_one_sentence(script, tmp_path):
    assert "--input=" in script("prepare_text.py", status=2).stderr
    assert "no such file" in script("prepare_text.py", "--input=nowhere/*.txt", status=2).stderr


def test_more_than_65536_characters_take_four_bytes(script, tmp_path):
    chars = [chr(i) for i in range(0x20, 0x11000) if not 0xD800 <= i < 0xE000]
    (tmp_path / "a.txt").write_text("".join(chars * 2), encoding="utf-8", newline="")
    script("prepare_text.py", "--input=a.txt", "--tokenizer=char")
    meta = read_meta(str(tmp_path / "data" / "a"))
    assert meta["dtype"] == "uint32" and len(meta["tokenizer"]["chars"]) > 65_536
    ids = np.concatenate([read(tmp_path / "data" / "a", s) for s in ("train", "val")])
    text = (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert from_dict(meta["tokenizer"]).decode(ids.tolist()) == text


def test_a_full_disk_keeps_what_was_there(script, tmp_path):
    (tmp_path / "a.txt").write_text("small\n" * 10)
    script("prepare_text.py", "--input=a.txt", "--tokenizer=byte")
    before = {p.name: p.read_bytes() for p in (tmp_path / "data" / "a").iterdir()}
    (tmp_path / "a.txt").write_text("a line of text\n" * 100_000)
    command = f"ulimit -f 1000; {sys.executable} {ROOT}/prepare_text.py --input=a.txt"
    result = subprocess.run(
        ["bash", "-c", f"{command} --tokenizer=byte"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode != 0 and "File too large" in result.stderr.splitlines()[-1]
    assert {p.name: p.read_bytes() for p in (tmp_path / "data" / "a").iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path, number):
    (tmp_path / "a.txt").write_text("a line of text\n" * 10_000_000)
    command = [sys.executable, ROOT / "prepare_text.py", "--input=a.txt", "--tokenizer=byte"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    folder = tmp_path / "data" / "a"
    while process.poll() is None and not any(p.stat().st_size for p in folder.glob(".*.tmp")):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) in (130, 143)
    assert list(folder.iterdir()) == []


def test_memory_stays_bounded(tmp_path):
    """64 MB of one document, of which far less lies in memory."""
    (tmp_path / "a.txt").write_text("It was the best of times.\n" * 2_500_000)
    command = [sys.executable, ROOT / "prepare_text.py", "--input=a.txt", "--tokenizer=byte"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    empty = [sys.executable, ROOT / "prepare_text.py", "--help"]
    other = subprocess.Popen(empty, cwd=tmp_path, stdout=subprocess.DEVNULL)
    _, _, least = os.wait4(other.pid, 0)
    assert status == 0
    assert usage.ru_maxrss - least.ru_maxrss < 48 * 1024  # kilobytes
