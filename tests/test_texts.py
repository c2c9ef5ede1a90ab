"""Files of every kind to datasets: nothing lost, nothing joined, nothing half-made."""

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY

from core import UserError
from core.dataset import read_meta
from core.extras import tables, textfile, texts
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.tokenizer import END, ByteTokenizer, CharTokenizer, from_dict


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
    f"Document {i}:\n\n   it's number {i * i}, naïve 你好 <|endoftext|>\n" for i in range(120)
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

    parquet.write_table(pyarrow.table({"text": DOCUMENTS, "id": list(range(len(DOCUMENTS)))}), path)


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
    assert 10 <= len(found["val"]) <= 14


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


def test_a_document_that_is_cut_lies_in_both_splits_and_ends_in_both(script, tmp_path):
    long = ["one long book. " * 1000, "another book, " * 500]
    for i, text in enumerate(long):
        (tmp_path / f"{i}.txt").write_text(text)
    said = script("prepare_text.py", "--input=*.txt", "--name=a", "--tokenizer=byte").stdout
    found = texts_of(tmp_path / "data" / "a")
    both = [first + last for first, last in zip(found["train"], found["val"], strict=True)]
    assert both == long and [len(text) for text in found["val"]] == [1500, 700]
    assert "train.bin: 19,802 tokens, 90.0% of the characters" in said
    assert "val.bin: 2,202 tokens, 10.0% of the characters" in said


def test_copies_of_a_document_share_a_split(script, tmp_path):
    rows = [json.dumps({"text": text}) for text in DOCUMENTS * 3]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    script("prepare_text.py", "--input=a.jsonl", "--tokenizer=byte")
    found = texts_of(tmp_path / "data" / "a")
    assert not set(found["train"]) & set(found["val"])
    assert sorted(found["train"] + found["val"]) == sorted(DOCUMENTS * 3)


def test_names_of_special_tokens_in_a_text_are_text(bpe):
    for text in [*DOCUMENTS[:3], "", "\U0001f600 x"]:
        pieces = [("train", text, True)]
        chars = CharTokenizer(sorted(set("".join(DOCUMENTS) + "\U0001f600")), ["<a>", END])
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
    assert found[0] == found[1] != found[2] and 34 <= len(found[0]) <= 38


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
        ("a.pdf", b"%PDF-1.4\n%\xac\xdc\n" + b"\0\x90x" * 50, "as no text has; it is binary."),
        ("a.txt", "Größe\nok\n".encode() * 9 + b"\xc3", "though the rest looks like it"),
        ("a.txt", "你好".encode("gb18030") * 50, "line 1, is not UTF-8"),
        ("a.txt", b"long enough \n" * 200_000 + b"\xff", "line 200001, is not UTF-8"),
        ("a.txt", b"long enough \n" * 200_000 + b"\0", "binary"),
        ("a.jsonl", b'{"body": "x"}\n', "--column names one of body"),
        ("a.jsonl", b'{"text": "x"}\n{"te', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is [1]: neither an object nor a text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": [7]}\n', "line 2 has no text as its 'text': [7]"),
        ("a.json", b'[{"body": "x"}, {"id": 1}]', "--column names one of body, id"),
        ("a.json", b'[{"text": "x"},\n]', "is not JSON: Expecting value: line 2"),
        ("a.tsv", b"body\tid\nx\t1\n", "--column names one of body, id"),
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
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n')
    found = [*tables.jsonl_texts(str(path), "text", None)]
    assert found == ["cut ?", "whole \U0001f600"]


ROWS = {
    "a.jsonl": '{"text": "one"}\n\n{"text": 2.50}\n{"text": null}\n{"id": 1}\n"five"\n',
    "lines.json": '{"text": "one"}\n{"text": 2.50}\n{"text": "five"}\n',
    "array.json": '[\n {"text": "one"}, {"text": 2.50}, {"text": null},\n "five"]',
    "a.csv": 'text,id\none,1\n2.5,2\n"",3\nfive,4\n',
    "b.csv": 'id;text\n1;one\n2;2.5\n3;""\n4;five\n',
    "a.tsv": "id\ttext\n1\tone\n2\t2.5\n3\n4\tfive\n",
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_table_are_documents_and_numbers_are_taken_as_text(tmp_path, name):
    path = str(tmp_path / name)
    (tmp_path / name).write_text(ROWS[name])
    found = ["".join(document) for document in texts.documents([path], "text")]
    assert [text for text in found if text] == ["one", "2.5", "five"]


def test_json_that_is_no_list_is_plain_text(tmp_path):
    for content in ('{"name": "package",\n "version": 1}', "{}", '{"one": 1}', "[1, 2]", "{\n{"):
        (tmp_path / "a.json").write_text(content)
        [document] = texts.documents([str(tmp_path / "a.json")], "text")
        assert "".join(document) == content


def test_rows_without_text_are_skipped_and_counted(script, tmp_path):
    rows = ['{"text": null}', '{"other": 1}', '{"text": ""}', '{"text": "hello there"}', '"second"']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    said = script("prepare_text.py", "--input=a.jsonl", "--tokenizer=byte").stdout
    assert "skipped: 3 rows or files without text" in said and "2 documents" in said


def test_categories_of_text_in_parquet_are_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pyarrow.array(["a", None, "b", "a"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert [*tables.parquet_texts(str(tmp_path / "a.parquet"), "text", None)] == ["a", "", "b", "a"]


def test_a_folder_of_chinese_files_is_taken_whole(script, tmp_path):
    """The first bytes that are looked at end within a character for two of three files."""
    (tmp_path / "zh").mkdir()
    for i in range(9):
        text = "x" * (i % 3) + "".join(chr(0x4E00 + 7 * n + i) for n in range(2000))
        (tmp_path / "zh" / f"{i}.txt").write_text(text, encoding="utf-8")
    said = script("prepare_text.py", "--input=zh", "--tokenizer=char").stdout
    assert "9 documents" in said and "left out" not in said


def test_what_a_folder_leaves_out_is_named_with_the_reason(script, tmp_path):
    (tmp_path / "a").mkdir()
    for name, content in {
        "1.txt": b"some plain text " * 9,
        "2.txt": "早上好 你叫什么名字".encode("gb18030"),
        "3.png": b"\x89PNG\r\n\0\0\0\rIHDR",
        "4.txt": "plain text again".encode("utf-16"),
        "5.txt.gz": gzip.compress(b"\0\1\2" * 50),
        ".hidden": b"\0",
    }.items():
        (tmp_path / "a" / name).write_bytes(content)
    said = script("prepare_text.py", "--input=a", "--tokenizer=byte").stdout
    assert (
        "left out: 3 files, 2.txt (gb18030), 3.png (binary), 5.txt.gz (binary); "
        "--encoding=gb18030 takes those that are gb18030." in said
    )
    assert "2 documents" in said
    for name in ("1.txt", "4.txt"):
        (tmp_path / "a" / name).unlink()
    error = script("prepare_text.py", "--input=a", "--tokenizer=byte", status=2).stderr
    assert "--input=a has no text files. left out: 3 files" in error
    said = script("prepare_text.py", "--input=a", "--tokenizer=char", "--encoding=gb18030").stdout
    assert "left out: 2 files" in said and "1 documents" in said


SENTENCES = {
    "gb18030": "早上好\n你叫什么名字\n" * 5,
    "cp1252": "Größe und Maß: über café, déjà vu — naïve façade\n" * 5,
    "utf-16-le": "a text without a mark\n" * 5,
    "utf-16-be": "a text without a mark\n" * 5,
}


@pytest.mark.parametrize("encoding", SENTENCES)
def test_the_likely_encoding_is_named_and_works(script, tmp_path, encoding):
    text = SENTENCES[encoding]
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    command = ("prepare_text.py", "--input=a.txt", "--tokenizer=char")
    said = script(*command, status=None)
    assert said.returncode == 2 and "Traceback" not in said.stderr
    assert encoding in said.stderr.splitlines()[-1]
    script(*command, f"--encoding={encoding}")
    assert whole_text(tmp_path / "data" / "a") == text
    if encoding == "gb18030":
        wrong = script(*command, "--encoding=ascii", status=None).stderr.splitlines()[-1]
        assert "a.txt, line 1, is not ASCII" in wrong and "add --encoding=gb18030" in wrong


WAITING = """
import runpy, sys, time
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].removesuffix("prepare_text.py"))
from core import dataset
write, appended = dataset.Writer.append, []
def append(self, *arguments, **more):
    write(self, *arguments, **more)
    print("writing", flush=True)
    time.sleep(60)
dataset.Writer.append = append
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_prepare_that_is_ended_leaves_the_old_dataset_and_nothing_else(script, tmp_path, number):
    text = tmp_path / "a.txt"
    text.write_text("one two three " * 200)
    options = ["--input=a.txt", "--name=mine", "--tokenizer=byte"]
    script("prepare_text.py", *options)
    folder = tmp_path / "data" / "mine"
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    text.write_text("four five six " * 200)
    command = [sys.executable, "-c", WAITING, ROOT / "prepare_text.py", *options]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.stdout.readline().strip() != "writing":
        assert process.poll() is None
    os.killpg(process.pid, number)  # all that it has started, too
    assert process.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    if number == signal.SIGKILL:  # then the next run cleans up
        assert any(name.endswith(".tmp") for name in left)
        script("prepare_text.py", *options)
        assert {path.name for path in folder.iterdir()} == set(old)
        assert (folder / "train.bin").read_bytes() != old["train.bin"]
    else:
        assert left == old


def test_nohup_keeps_a_prepare_from_ending_with_its_terminal(tmp_path):
    (tmp_path / "a.txt").write_text("one two three " * 200)
    command = [sys.executable, "-c", WAITING.replace("sleep(60)", "sleep(1)")]
    options = [ROOT / "prepare_text.py", "--input=a.txt", "--tokenizer=byte"]
    process = subprocess.Popen(
        ["nohup", *command, *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    while process.stdout.readline().strip() != "writing":
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0 and (tmp_path / "data" / "a" / "train.bin").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_the_prepare_script_of_a_run_ends_with_it(tmp_path, number):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent was killed")
    (tmp_path / "a.txt").write_text("".join(f"one two three {i}\n" for i in range(400_000)))
    prepare = "--prepare=prepare_text.py --input=a.txt --tokenizer=byte"
    command = [sys.executable, ROOT / "train.py", *TINY, "--dataset=a", prepare]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("data/a/*.tmp")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)  # to the run alone
    assert process.wait(60) in (128 + number, -number)
    end = time.monotonic() + 30
    while list(tmp_path.glob("data/a/*.tmp")) and time.monotonic() < end:
        time.sleep(0.05)
    left = sorted(path.name for path in tmp_path.glob("data/a/*"))
    assert left in ([], ["meta.json", "train.bin", "val.bin"])  # nothing, or it was done


def test_a_long_run_of_white_space_takes_no_time(tmp_path):
    text = (
        "word" + " " * (4 * 2**20) + "word"
    )  # looked at one by one, again for each, it took hours
    assert "".join(texts.cut_long(text)) == text


@pytest.mark.parametrize("name", ["../mine", "/tmp/mine", ".", "a/../.."])
def test_a_name_that_leads_out_of_data_is_one_sentence(script, tmp_path, name):
    (tmp_path / "a.txt").write_text("one two three " * 200)
    options = ["--input=a.txt", f"--name={name}", "--tokenizer=byte"]
    said = script("prepare_text.py", *options, status=2).stderr
    assert f"--name={name} is not below data/" in said and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_small_file_that_unpacks_to_an_endless_row_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.setattr(textfile, "LONGEST_LINE", 10**6)
    monkeypatch.setattr(tables, "LONGEST_LINE", 10**6)
    monkeypatch.setattr(tables, "LONGEST_ARRAY", 10**6)
    start = {"a.jsonl.gz": b'{"text": "', "a.csv.gz": b'text\n"', "a.json.gz": b'[{"text": "'}[name]
    path = str(tmp_path / name)
    with gzip.open(path, "wb") as file:
        file.write(start + b"x" * 10**7)
    assert os.path.getsize(path) < 20_000
    with pytest.raises(UserError, match=r"more than 1,000,000 characters|field larger"):
        list(tables.rows_of(path)(path, "text", "utf-8"))


def test_an_unknown_encoding_is_one_sentence(script, tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    for name in ("klingon", "base64"):
        command = ("prepare_text.py", "--input=a.txt", "--tokenizer=byte", f"--encoding={name}")
        assert f"--encoding={name} is not known" in script(*command, status=None).stderr


def test_one_wrong_byte_in_utf8_is_found_by_its_line(script, tmp_path):
    lines = ["你好世界\n".encode()] * 5000
    lines[3000] = "你好".encode()[:-1] + b"\n"
    (tmp_path / "a.txt").write_bytes(b"".join(lines))
    said = script("prepare_text.py", "--input=a.txt", "--tokenizer=byte", status=None)
    assert said.returncode == 2
    assert "a.txt, line 3001, is not UTF-8" in said.stderr and "correct that line" in said.stderr


def whole_text(folder) -> str:
    coder = from_dict(read_meta(str(folder))["tokenizer"])
    return "".join(coder.decode(read(folder, split).tolist()) for split in ("train", "val"))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.tsv", "a.json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_taken_off_and_names_the_encoding(tmp_path, name, encoding):
    content = {"jsonl": '{"text": "naïve"}', "csv": "text\nnaïve", "tsv": "text\tid\nnaïve\t1"}
    content |= {"json": '[{"text": "naïve"}]'}
    data = content.get(name.split(".")[-1], "naïve").encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for told in (None, "utf-8", "gb18030", "utf-16"):
        [document] = texts.documents([str(tmp_path / name)], "text", told)
        assert "".join(document) == "naïve"


def test_it_says_how_to_train_on_it(script, tmp_path):
    (tmp_path / "my book.txt").write_text("a line of text\n" * 200)
    said = script("prepare_text.py", "--input=my book.txt", "--tokenizer=char").stdout
    command = said.splitlines()[-1].removeprefix("train on it: ")
    program, name, config, *options = shlex.split(command)
    assert (program, name) == ("python", "train.py") and "'--dataset=my book'" in command
    small = ["--max_iters=1", "--eval_iters=1", "--batch_size=2", "--compile=False"]
    out = script(name, str(ROOT / config), *options, *small).stdout
    assert "tokens of my book.txt" in out and (tmp_path / "out" / "my book" / "ckpt.pt").exists()


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
    while process.poll() is None and not any(p.stat().st_size for p in folder.glob("*.tmp")):
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
