"""Shared by the tests: where real data is, small datasets, and running a script as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.dataset import Writer  # noqa: E402
from core.tokenizer import ByteTokenizer, CharTokenizer  # noqa: E402

TINY = [  # a model that trains in milliseconds
    *("--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4"),
    *("--gradient_accumulation_steps=1", "--eval_iters=3", "--log_interval=1", "--warmup_iters=2"),
    *("--device=cpu", "--dtype=float32", "--learning_rate=0.01"),
]


@pytest.fixture(scope="session")
def folio_data():
    """A function name -> path of a file of real data, or a skip that says what is missing."""
    folder = Path(os.environ.get("FOLIO_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{folder / name} is not there; FOLIO_DATA names its folder")
        return folder / name

    return find


@pytest.fixture
def script(tmp_path):
    """A function that runs `python NAME ARGUMENTS` in an empty folder and checks its status.

    A status of 2, a user's mistake, must come with one sentence; None checks nothing.
    """

    def run(name: str, *arguments, status: int | None = 0, timeout: int = 300, **environment: str):
        result = subprocess.run(
            [sys.executable, str(ROOT / name), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        said = f"{result.stdout}\n{result.stderr}"
        assert status is None or result.returncode == status, said
        if status == 2:  # a user's mistake is one sentence
            assert "Traceback" not in result.stderr, said
            assert len(result.stderr.strip().splitlines()) == 1, said
        return result

    return run


@pytest.fixture
def toy(tmp_path):
    """data/toy in the test's folder: 4,000 + 1,000 characters of a text that can be learned."""
    text = "the quick brown fox jumps over the lazy dog.\n" * 120
    tokenizer = CharTokenizer.from_text(text)
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
