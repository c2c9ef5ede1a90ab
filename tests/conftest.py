"""Shared by the tests: where real data is, small datasets, and running a script as a user does."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "2"  # before torch counts them: the same for all that is compared
os.environ["OMP_WAIT_POLICY"] = "passive"  # tests share the cores: threads that spin take them

from core.dataset import Writer  # noqa: E402
from core.generate import Sampling, generate  # noqa: E402
from core.tokenizer import ByteTokenizer, CharTokenizer  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

TINY = [  # a model that trains in milliseconds
    *("--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4"),
    *("--gradient_accumulation_steps=1", "--eval_iters=3", "--log_interval=1", "--warmup_iters=2"),
    *("--device=cpu", "--dtype=float32", "--learning_rate=0.01"),
]


SHAPE = dict(vocab_size=65, block_size=16, n_layer=3, n_head=2, n_embd=32)
MODERN = dict(
    activation="relu2", rotary=True, rms_norm=True, qk_norm=True, logit_softcap=15.0,
    untied_head=True, bias=False,
)  # fmt: skip
VARIANTS = [
    {},
    {**MODERN, "smear": 2},
    {"rotary": True},
    {"activation": "gelu"},
    {"smear": 1},
    {"window": 4},
]


def small(seed=0, **fields) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SHAPE, **fields})).eval()
    for p in model.parameters():  # away from the symmetric start, so that every term counts
        torch.nn.init.normal_(p, 0.0 if p.ndim > 1 else 1.0, 0.3)
    return model


def tokens(*shape, seed=1) -> torch.Tensor:
    return torch.randint(65, shape, generator=torch.Generator().manual_seed(seed))


def greedy(model, idx, n) -> torch.Tensor:
    """The n likeliest tokens after idx (B, T), one after the other: (B, n)."""
    return torch.stack(list(generate(model, idx, n, Sampling(temperature=0))), dim=1)


@pytest.fixture(scope="session")
def folio_data():
    """A function name -> path of a file of real data, or a skip that says what is missing."""
    folder = Path(os.environ.get("FOLIO_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{folder / name} is not there; FOLIO_DATA names its folder")
        return folder / name

    return find


def start_fork_server():
    command = [sys.executable, Path(__file__).with_name("fork_server.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield server
        server.stdin.close()


@pytest.fixture(scope="session")
def fork_server():
    yield from start_fork_server()


@pytest.fixture(scope="session")
def rank_server():
    """One for several ranks: it has imported torch's compiler, which reads CXX when imported."""
    yield from start_fork_server()


def torchrun_environments(processes: int, machines: int) -> list[dict[str, str]]:
    """What torchrun sets for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    local = processes // machines
    same |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(local), "OMP_NUM_THREADS": "1"}
    return [same | {"RANK": str(i), "LOCAL_RANK": str(i % local)} for i in range(processes)]


@pytest.fixture
def script(request, tmp_path, tmp_path_factory, fork_server):
    """A function that runs `python NAME ARGUMENTS` in an empty folder and checks its status.

    name: a script at the root, such as train.py, or a module, such as projects.chat.talk.
    A status of 2, a user's mistake, must come with one sentence; None checks nothing.
    ranks: how many processes, and on how many machines, as torchrun would start them.
    """
    said = tmp_path_factory.mktemp("said")

    def run(name: str, *arguments, status=0, timeout=300, input="", ranks=(1, 1), **environment):
        stdin, stdout, stderr = (said / stream for stream in ("stdin", "stdout", "stderr"))
        for path in (stdout, stderr):
            path.write_text("")
        stdin.write_text(input, encoding="utf-8")
        name = str(name)
        path = ROOT / (name if name.endswith(".py") else f"{name.replace('.', '/')}.py")
        job = {
            "module": "" if name.endswith(".py") else name,
            "argv": [str(path), *map(str, arguments)],
            "cwd": str(tmp_path),
            "env": {**os.environ, **environment},
            "timeout": timeout,
            "ranks": torchrun_environments(*ranks) if ranks[0] > 1 else [],
        }
        job |= {"stdin": str(stdin), "stdout": str(stdout), "stderr": str(stderr)}
        server = request.getfixturevalue("rank_server") if job["ranks"] else fork_server
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        result = subprocess.CompletedProcess(
            job["argv"],
            code,
            stdout.read_text(encoding="utf-8"),
            stderr.read_text(encoding="utf-8"),
        )
        everything = f"{result.stdout}\n{result.stderr}"
        assert status is None or code == status, everything
        if status == 2:  # a user's mistake is one sentence
            assert "Traceback" not in result.stderr, everything
            assert len(result.stderr.strip().splitlines()) == 1, everything
        return result

    return run


def start_torchrun(folder, *arguments, launcher=("--standalone", "--nproc_per_node=2")):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, ROOT / "train.py", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def torchrun(tmp_path):
    """A function that runs train.py on two processes, checks its status, and gives its output."""

    def run(*arguments) -> str:
        process = start_torchrun(tmp_path, *arguments)
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out
        return out

    return run


@pytest.fixture
def hub():
    """A web server that stands for the Hugging Face hub: a function files, faults -> url.

    files: path, such as "/NAME/resolve/main/FILE", -> bytes. It lists the files of a dataset, and
    answers ranges. faults: path -> what to do at each GET in turn before it behaves: a status, or
    ("cut", n): n bytes, then silence. hub.asked: (path, range, authorization) of each file's GETs.
    """
    servers, commit = [], "0123456789abcdef0123456789abcdef01234567"

    def serve(files: dict[str, bytes], faults: dict[str, list] | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                path = self.path.replace(f"/resolve/{commit}/", "/resolve/main/")
                if path not in files:
                    return self.refuse(404)
                self.send_response(200)
                self.describe(files[path])

            def do_GET(self):
                path, span = self.path.partition("?")[0], self.headers.get("Range")
                path = path.replace(f"/resolve/{commit}/", "/resolve/main/")
                if "/resolve/" in path:
                    asked.append((path, span, self.headers["Authorization"]))
                fault = (faults or {}).get(path) or [None]
                fault = fault.pop(0)
                body = self.listing(path) if "/tree/" in path else files.get(path)
                if body is None or isinstance(fault, int):
                    return self.refuse(fault or 404)
                first = int((span or "bytes=0-")[6:-1])
                self.send_response(206 if first else 200)
                self.describe(body, first)
                self.wfile.write(body[first:] if fault is None else body[first:][: fault[1]])

            def listing(self, path: str) -> bytes | None:
                """Of /api/datasets/NAME/tree/REVISION, None if there are no such files."""
                folder = path.removeprefix("/api").replace("/tree/", "/resolve/") + "/"
                names = [path.removeprefix(folder) for path in files if path.startswith(folder)]
                entries = [{"type": "file", "path": n, "oid": "0", "size": 1} for n in names]
                return json.dumps(entries).encode() if names else None

            def describe(self, body: bytes, first: int = 0) -> None:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", str(len(body) - first))
                self.end_headers()

            def refuse(self, status: int) -> None:
                """As the hub does: is it the repository that is missing, or something in it?"""
                repository = re.split("/resolve/|/tree/", self.path.removeprefix("/api"))[0]
                code = "RevisionNotFound" if "/tree/" in self.path else "EntryNotFound"
                if not any(path.startswith(f"{repository}/resolve/") for path in files):
                    code = "RepoNotFound"
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", code)
                    self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        asked: list = []
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        serve.asked = asked
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()


@pytest.fixture
def toy(tmp_path):
    """data/toy in the test's folder: 4,000 + 1,000 characters of a text that can be learned."""
    text = "the quick brown fox jumps over the lazy dog.\n" * 120
    tokenizer = CharTokenizer(sorted(set(text)))
    with Writer(str(tmp_path / "data" / "toy"), tokenizer, {"name": "toy text"}) as writer:
        writer.append("train", tokenizer.encode(text[:4000]))
        writer.append("val", tokenizer.encode(text[4000:5000]))
    return tmp_path / "data" / "toy"


@pytest.fixture
def numbers(tmp_path):
    """A function that writes data/numbers of bytes 0, 1, 2, ... (mod 256), masked or in rows."""

    def write(train: int = 1000, val: int = 500, row_length=None, mask=None):
        folder = str(tmp_path / "data" / "numbers")
        with Writer(folder, ByteTokenizer(), {"name": "numbers"}, row_length) as writer:
            for split, count in (("train", train), ("val", val)):
                ids = np.arange(count) % 256
                writer.append(split, ids, None if mask is None else mask(np.arange(count)))
        return folder

    return write
