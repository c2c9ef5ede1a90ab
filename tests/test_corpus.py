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

from core import UserError, corpus
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
    coder, found = from_dict(read_meta(str(folder))["tokenizer"]), {}
    for split in ("train", "val"):
        ids = read(folder, split)
        ends = np.flatnonzero(ids == coder.end_token)
        assert len(ids) == 0 or ends[-1] == len(ids) - 1
        parts = np.split(ids, ends + 1)[:-1]
        found[split] = [coder.decode(part[:-1].tolist()) for part in parts]
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
    monkeypatch.setattr(corpus, "PIECE", 1000)
    monkeypatch.setattr(corpus, "BATCH", 3000)
    text = folio_data("tinyshakespeare.txt").read_text()[:200_000]
    text += "  \n\n \t x\n\n\n  y 'll \x1c\x1c z　　w don't\r\n \r\n" * 200 + "这" * 5000
    pieces = list(corpus.pieces(text))
    assert "".join(pieces) == text and len(pieces) > 100
    parts = [ids["train"] for ids, _ in corpus.encoded((("train", p, False) for p in pieces), bpe)]
    assert np.concatenate(parts).tolist() == bpe.bpe.encode_ordinary(text)


def test_arrays_of_ids_equal_lists_of_ids(bpe):
    for text in [*DOCUMENTS[:3], "", "\U0001f600 x"]:
        chars = CharTokenizer.from_text("".join(DOCUMENTS) + "\U0001f600", ["<a>", END])
        for coder in (chars, ByteTokenizer()):
            assert coder.encode_array(text).tolist() == coder.encode(text)
        assert bpe.encode_array(text).tolist() == bpe.bpe.encode_ordinary(text)
    with pytest.raises(UserError, match="outside the vocabulary: 'ж'"):
        CharTokenizer.from_text("abc").encode_array("aж")
    for coder in (chars, ByteTokenizer(), bpe):
        lengths = coder.byte_lengths()
        assert len(lengths) == coder.vocab_size
        ids = coder.encode_array(DOCUMENTS[7])
        assert lengths[ids].sum() == len(DOCUMENTS[7].encode())


def test_the_split_depends_on_the_seed_and_fills_both_sides(script, tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    found = []
    for seed in (1, 1, 2):
        options = ("--tokenizer=byte", f"--seed={seed}", "--val_share=0.3")
        script("prepare_text.py", "--input=a.jsonl", *options)
        found.append(texts_of(tmp_path / "data" / "a")["val"])
    assert found[0] == found[1] != found[2] and 8 <= len(found[0]) <= 30
    assert [corpus.split_of(i, 0.0, 0) for i in range(3)] == ["val", "train", "train"]


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
        ("a.jsonl", b"[1]\n", "line 1"),
        ("a.csv", b"body,id\nx,1\n", "--column names one of body, id"),
        ("a.parquet", b"PAR1 it is not", "no parquet"),
        ("a.txt.gz", b"not gzip", "can't be read"),
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
    assert result.returncode == 2 and "can't be written" in result.stderr.splitlines()[-1]
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


@pytest.mark.skipif(sys.platform != "linux", reason="text is encoded by threads elsewhere")
def test_ctrl_c_at_the_moment_of_a_fork_is_not_lost(tmp_path):
    (tmp_path / "a.txt").write_text("a line of text\n" * 1000)
    code = f"""
import os, runpy, signal, sys, threading
# any thread may take a signal that the main one blocks
threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start()
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["{ROOT / "prepare_text.py"}", "--input=a.txt", "--tokenizer=byte"]
sys.path.insert(0, "{ROOT}")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL, timeout=60)
    assert result.returncode in (130, -signal.SIGINT)
    assert list((tmp_path / "data" / "a").iterdir()) == []


def shards(tmp_path, count: int) -> tuple[dict[str, bytes], list[str]]:
    """What the hub holds: parquet files of 50 documents each, and all documents."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files, documents = {}, []
    for n in range(count):
        texts = [f"Shard {n}, document {i}: it's text.\n" * (i % 5 + 1) for i in range(50)]
        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "x.parquet")
        files[f"/files/{n}.parquet"] = (tmp_path / "x.parquet").read_bytes()
        documents += texts
    return files, documents


def test_openwebtext_comes_whole_from_a_hub_that_stumbles(bpe, script, tmp_path, hub):
    files, documents = shards(tmp_path, 4)
    listing = "/api/datasets/some/text/parquet"
    faults = {
        "/files/0.parquet": [503, ("cut", 700)],
        "/files/2.parquet": [("cut", 100), ("cut", 50), 503],
    }
    url = hub(files, faults)
    files[listing] = json.dumps({"plain": {"train": [f"{url}{f}" for f in files]}}).encode()
    options = ["--hub_dataset=some/text", "--name=owt", "--val_share=0.1"]
    script("prepare_openwebtext.py", *options, HF_ENDPOINT=url)
    found = texts_of(tmp_path / "data" / "owt")
    assert sorted(found["train"] + found["val"]) == sorted(documents)
    assert 8 < len(found["val"]) < 40
    names = sorted(p.name for p in (tmp_path / "data" / "owt").iterdir())
    assert names == ["meta.json", "train.bin", "val.bin"]
    script("prepare_openwebtext.py", *options, "--shards=1", "--name=one", HF_ENDPOINT=url)
    found = texts_of(tmp_path / "data" / "one")
    assert sorted(found["train"] + found["val"]) == sorted(documents[:50])


def test_openwebtext_goes_on_at_the_shard_where_it_stopped(bpe, script, tmp_path, hub):
    files, documents = shards(tmp_path, 4)
    names = list(files)
    faults = {"/files/2.parquet": [404]}
    url = hub(files, faults)
    files["/api/datasets/some/text/parquet"] = json.dumps(
        {"plain": {"train": [f"{url}{f}" for f in names]}}
    ).encode()
    options = ["--hub_dataset=some/text", "--name=owt", "--val_share=0.1"]
    result = script("prepare_openwebtext.py", *options, status=None, HF_ENDPOINT=url)
    assert result.returncode == 2 and "404" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "data" / "owt" / "train.bin").exists()
    first = len(hub.asked)
    result = script("prepare_openwebtext.py", *options, HF_ENDPOINT=url)
    assert "going on after 2 of 4 files, 100 documents" in result.stdout
    assert [path for path, *_ in hub.asked[first + 1 :]] == names[2:]  # none comes twice
    found = texts_of(tmp_path / "data" / "owt")
    assert sorted(found["train"] + found["val"]) == sorted(documents)
    # as if it had never stopped
    script("prepare_openwebtext.py", *options[:1], "--name=b", *options[2:], HF_ENDPOINT=url)
    for split in ("train", "val"):
        both = (read(tmp_path / "data" / name, split) for name in ("owt", "b"))
        assert np.array_equal(*both)


def test_openwebtext_without_a_hub_is_one_sentence(bpe, script, tmp_path, hub):
    away = script("prepare_openwebtext.py", status=2, HF_ENDPOINT="http://127.0.0.1:9")
    assert "HF_ENDPOINT" in away.stderr
    listing = "/api/datasets/some/text/parquet"
    url = hub({listing: b'{"plain": {"train": []}}'})
    options = ["--hub_dataset=some/text", "--hub_config=fancy"]
    assert (
        "has plain" in script("prepare_openwebtext.py", *options, status=2, HF_ENDPOINT=url).stderr
    )


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
