"""prepare_shakespeare.py against a server on this machine: correct, wrong, cut off, away."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from configurator import configure

import numpy as np
import pytest
from conftest import ROOT, TINY

from core import UserError
from core.download import download

TEXT = "What say you to a piece of beef and mustard?\n" * 500
AWAY = "http://127.0.0.1:9/input.txt"  # nobody listens there


@pytest.fixture
def server():
    """A function answers -> url: each request takes the next (status, body), the last one stays.

    A body longer than what is sent, as (status, body, sent), breaks off.
    """
    servers, asked = [], []

    def serve(*answers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body, *sent = answers[min(len(asked), len(answers) - 1)]
                asked.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: sent[0]] if sent else body)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/input.txt"

    serve.asked = asked
    yield serve
    for s in servers:
        s.shutdown()


def read_back(folder) -> str:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    pieces = meta["tokenizer"]["chars"]
    ids = np.concatenate([np.fromfile(folder / f"{s}.bin", np.uint16) for s in ("train", "val")])
    return "".join(pieces[i] for i in ids)


def test_tiny_shakespeare_is_split_as_nanogpt_splits_it(script, folio_data, tmp_path):
    text = folio_data("tinyshakespeare.txt")
    script("prepare_shakespeare.py", f"--input={text}")
    folder = tmp_path / "data" / "shakespeare_char"
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["train_tokens"], meta["val_tokens"]) == (1_003_854, 111_540)
    assert len(meta["tokenizer"]["chars"]) == 65
    assert read_back(folder) == text.read_text()


def test_its_bpe_has_as_many_tokens_as_nanogpts(script, folio_data, tmp_path):
    text, cache = folio_data("tinyshakespeare.txt"), str(folio_data("tiktoken-cache"))
    options = ("--tokenizer=gpt2", f"--input={text}")
    script("prepare_shakespeare.py", *options, TIKTOKEN_CACHE_DIR=cache)
    meta = json.loads((tmp_path / "data" / "shakespeare" / "meta.json").read_text())
    assert (meta["train_tokens"], meta["val_tokens"]) == (301_966, 36_059)
    assert meta["tokenizer"] == {"kind": "gpt2"} and meta["dtype"] == "uint16"


def test_a_download_that_stumbles_is_tried_again(script, server, tmp_path):
    body = TEXT.encode()
    url = server((503, b"busy"), (200, body, len(body) // 2), (200, body))
    script("prepare_shakespeare.py", f"--url={url}", "--sha256=")
    folder = tmp_path / "data" / "shakespeare_char"
    assert read_back(folder) == TEXT and len(server.asked) == 3
    assert (folder / "input.txt").read_text() == TEXT
    script("prepare_shakespeare.py", f"--url={AWAY}", "--sha256=")  # it is there already
    assert read_back(folder) == TEXT


def test_a_wrong_answer_is_one_sentence_and_leaves_nothing(script, server, tmp_path):
    for answer, sentence in (((404, b"gone"), "404"), ((200, b"other text"), "sha256")):
        server.asked.clear()
        script_output = script("prepare_shakespeare.py", f"--url={server(answer)}", status=None)
        assert sentence in script_output.stderr and script_output.returncode == 2
        left = [p for p in (tmp_path / "data").rglob("*") if p.is_file()]
        assert left == []


def test_without_a_network_it_asks_for_a_file_and_the_next_run_downloads(script, server, tmp_path):
    result = script("prepare_shakespeare.py", f"--url={AWAY}", status=2)
    assert "with --input=FILE" in result.stderr
    folder = tmp_path / "data" / "shakespeare_char"
    assert list(folder.iterdir()) == []
    script("prepare_shakespeare.py", f"--url={server((200, TEXT.encode()))}", "--sha256=")
    assert read_back(folder) == TEXT


def test_the_dataset_says_where_its_text_came_from(script, server, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT)
    script("prepare_shakespeare.py", "--input=my.txt")
    path = tmp_path / "data" / "shakespeare_char" / "meta.json"
    assert json.loads(path.read_text())["source"] == {"name": "my.txt"}
    url = server((200, TEXT.encode()))
    script("prepare_shakespeare.py", f"--url={url}", "--sha256=")
    assert json.loads(path.read_text())["source"] == {"name": url}


def test_train_prepares_what_is_missing(script, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT)
    train = [*TINY, "--dataset=shakespeare_char", "--max_iters=1", "--compile=False"]
    prepare = "--prepare=prepare_shakespeare.py --input=my.txt"
    assert "tokens of my.txt" in script("train.py", *train, prepare).stdout
    module = "--prepare=projects.arithmetic.prepare_addition --digits=1 --held_out=20"
    assert "sums of numbers" in script("train.py", *train, "--dataset=addition", module).stdout
    failing = "--prepare=prepare_shakespeare.py --input=nowhere.txt"
    result = script("train.py", *train, failing, "--dataset=other", status=None)
    assert result.returncode == 2 and "nowhere.txt" in result.stderr


def test_a_byte_order_mark_is_no_character_of_the_text(script, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8-sig")
    script("prepare_shakespeare.py", "--input=my.txt")
    assert read_back(tmp_path / "data" / "shakespeare_char") == TEXT


def test_the_name_of_the_end_token_in_a_text_is_text(script, folio_data, tmp_path):
    text, cache = "first story<|endoftext|>second story " * 40, str(folio_data("tiktoken-cache"))
    (tmp_path / "my.txt").write_text(text)
    script("prepare_shakespeare.py", "--input=my.txt")
    assert read_back(tmp_path / "data" / "shakespeare_char") == text
    options = ("--tokenizer=gpt2", "--input=my.txt")
    script("prepare_shakespeare.py", *options, TIKTOKEN_CACHE_DIR=cache)
    script("prepare_text.py", *options, "--name=shakespeare_too", TIKTOKEN_CACHE_DIR=cache)
    for name in ("shakespeare", "shakespeare_too"):
        ids = np.fromfile(tmp_path / "data" / name / "train.bin", np.uint16)
        assert len(ids) > 100 and 50256 not in ids


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"", "is empty"), (b"\xff\xfe\x00", "not UTF-8")]
)
def test_bad_input_is_one_sentence(script, tmp_path, content, sentence):
    (tmp_path / "bad.txt").write_bytes(content)
    result = script("prepare_shakespeare.py", "--input=bad.txt", status=2)
    assert sentence in result.stderr
    missing = script("prepare_shakespeare.py", "--input=no.txt", status=2)
    assert "no.txt: No such file" in missing.stderr


def test_each_mirror_that_fails_is_followed_by_the_next(script, server, tmp_path):
    body, folder = TEXT.encode(), tmp_path / "data" / "shakespeare_char"
    sha256 = f"--sha256={hashlib.sha256(body).hexdigest()}"
    bad = [AWAY, server((503, b"busy")), server((200, b"other text"))]
    bad.append(server((200, body, len(body) // 2)))
    failed = script("prepare_shakespeare.py", f"--url={' '.join(bad)}", sha256, status=None)
    sentence = failed.stderr.splitlines()[-1]
    assert failed.returncode == 2 and "with --input=FILE" in sentence
    assert all(f"{url}: " in sentence for url in bad)
    assert list(folder.iterdir()) == []
    server.asked.clear()
    good = server((200, body))
    script("prepare_shakespeare.py", f"--url={' '.join([*bad, good])}", sha256)
    assert read_back(folder) == TEXT and len(server.asked) == 4  # each one was asked once


def test_a_download_that_is_interrupted_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("core.download.tqdm", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(server((200, b"abc")), str(tmp_path / "text"))
    assert list(tmp_path.iterdir()) == []


def test_tiny_shakespeare_has_mirrors_and_one_sha256(folio_data):
    settings = configure(str(ROOT / "prepare_shakespeare.py"), argv=[])
    assert len({url.split("/")[2] for url in settings["url"].split()}) == 3
    text = folio_data("tinyshakespeare.txt").read_bytes()
    assert settings["sha256"] == hashlib.sha256(text).hexdigest()


def test_a_download_tries_three_times_and_then_says_why(server, tmp_path):
    path = str(tmp_path / "folder" / "text")
    with pytest.raises(UserError, match=r"cannot be downloaded .*503"):
        download(server((503, b"busy")), path)
    assert len(server.asked) == 3
    with pytest.raises(UserError, match=r"cannot be downloaded .*Connection"):
        download(AWAY, path)
    server.asked.clear()
    download(server((200, b"abc")), path)
    assert (tmp_path / "folder" / "text").read_bytes() == b"abc" and len(server.asked) == 1
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["text"]
