"""The format on disk, written and read: data/NAME/{train,val}.bin + meta.json, see data/README.md.

with Writer("data/toy", ByteTokenizer(), source={"name": "toy.txt"}) as writer:
    writer.append("train", [104, 105, 10])
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from glob import escape, glob

import numpy as np

from core import UserError
from core.distributed import local_rank_first
from core.tokenizer import Tokenizer, from_dict

SPLITS = ("train", "val")
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NANOGPT = {"tokenizer": {"kind": "gpt2"}, "dtype": "uint16", "row_length": None, "task": None}
NANOGPT |= {"use": "", "source": {"name": "GPT-2 tokens, since there is no meta.json"}}


class Writer:
    """Writes a dataset piece by piece; the old one stays until the new one is whole.

    source: where the text came from. row_length: None for a stream of text; N where every N tokens
    are an example. task: what the examples mean to whoever uses a model of them. use: the command
    that does so, in which {out_dir} stands for a run's folder; "" = sample.py with a prompt.
    """

    def __init__(
        self, folder, tokenizer: Tokenizer, source: dict, row_length=None, task=None, use=""
    ):
        self.folder, self.files = folder, {}
        self.counts, self.bytes = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        self.meta = {"tokenizer": tokenizer.to_dict(), "row_length": row_length, "source": source}
        self.meta["dtype"] = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self.meta["task"], self.meta["use"] = task, use

    def __enter__(self) -> "Writer":
        os.makedirs(self.folder, exist_ok=True)
        return self

    def append(self, split: str, ids, mask=None, num_bytes: int = 0) -> None:
        """Add token ids, with a loss mask as many ones (a target) and zeros (ignored).

        num_bytes: the length in UTF-8 of the text that they stand for, for bits per byte.
        """
        self.write(f"{split}.bin", np.asarray(ids).astype(DTYPES[self.meta["dtype"]]))
        if mask is not None:
            assert len(mask) == len(ids), "one mask byte per token"
            self.write(f"{split}.mask.bin", np.asarray(mask, np.uint8))
        self.counts[split] += len(ids)
        self.bytes[split] += num_bytes

    def write(self, name: str, array: np.ndarray) -> None:
        if name not in self.files:
            self.files[name] = open(os.path.join(self.folder, f".{name}.{os.getpid()}.tmp"), "wb")
        self.files[name].write(array.tobytes())

    def __exit__(self, kind, error, traceback) -> None:
        """Rename everything into place, or leave nothing."""
        try:
            if kind is None:
                self.rename_all()
        finally:
            for file in self.files.values():
                with contextlib.suppress(OSError):  # of a full disk, raised already
                    file.close()
            # found by name: a signal may have come while one was opened
            for path in glob(os.path.join(escape(self.folder), f".*.{os.getpid()}.tmp")):
                os.remove(path)

    def rename_all(self) -> None:
        for split in SPLITS:
            self.meta[f"{split}_tokens"] = self.counts[split]
            self.meta[f"{split}_bytes"] = self.bytes[split]
        meta = json.dumps(self.meta, ensure_ascii=False, indent=1)
        self.write("meta.json", np.frombuffer(meta.encode(), np.uint8))
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        # meta.json first: its counts reveal a replacement that was cut short
        for name in sorted(self.files, key=lambda name: name != "meta.json"):
            os.replace(self.files[name].name, os.path.join(self.folder, name))
        for name in {"train.mask.bin", "val.mask.bin"} - set(self.files):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.folder, name))


def read_meta(folder: str) -> dict:
    """meta.json; a folder of .bin files without one is nanoGPT's, of GPT-2 tokens."""
    path = os.path.join(folder, "meta.json")
    if not os.path.exists(path):
        return dict(NANOGPT)
    with open(path, encoding="utf-8") as file:
        try:
            return {**NANOGPT, **json.load(file)}
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): run its prepare script again.") from None


def ensure_prepared(folder: str, command: str) -> Tokenizer:
    """The dataset's tokenizer; if the dataset is missing its prepare command runs first.

    command: a script or module of this repository with its options; "" if there is none.
    """
    train_bin = os.path.join(folder, "train.bin")
    with local_rank_first():
        if command and not os.path.exists(train_bin):
            script, *options = shlex.split(command)
            start = [os.path.join(ROOT, script)] if script.endswith(".py") else ["-m", script]
            path = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "PYTHONPATH": path}
            subprocess.run([sys.executable, *start, *options], env=environment)
    if command and not os.path.exists(train_bin):
        raise UserError(f"there is no {train_bin}: --prepare={command!r} did not make it.")
    if not os.path.exists(train_bin):
        raise UserError(
            f"there is no {train_bin}: run a prepare script, such as prepare_text.py, and add "
            "--dataset=NAME with the folder it makes, or put the .bin files of nanoGPT's "
            f"data/{os.path.basename(folder)}/prepare.py there."
        )
    return from_dict(read_meta(folder)["tokenizer"])


class Split:
    """The .bin file of one split, checked, and its loss mask if there is one."""

    def __init__(self, folder: str, name: str, meta: dict, vocab_size: int):
        self.path = os.path.join(folder, f"{name}.bin")
        self.mask_path = os.path.join(folder, f"{name}.mask.bin")
        self.dtype, self.vocab_size = DTYPES[meta["dtype"]], vocab_size
        self.masked = os.path.exists(self.mask_path)
        size = os.path.getsize(self.path)
        self.length = meta.get(f"{name}_tokens", size // self.dtype.itemsize)
        if size != self.length * self.dtype.itemsize:
            self.fail(f"has {size} bytes, not those of {self.length} tokens")
        if self.masked and os.path.getsize(self.mask_path) != self.length:
            self.fail(f"has {self.length} tokens, and its mask has another number")

    def fail(self, what: str) -> None:
        raise UserError(f"{self.path} {what}: run its prepare script again.")

    def sequences(self, starts: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
        """x and y, (len(starts), T) int64: y is x one token later, and -1 where it is ignored."""
        positions = starts[:, None] + np.arange(T + 1)
        # maps opened for each batch let go of the pages that were read: memory does not grow
        ids = np.memmap(self.path, self.dtype, mode="r")[positions].astype(np.int64)
        if ids.max(initial=0) >= self.vocab_size:
            self.fail(f"has the id {ids.max()}, beyond its vocabulary of {self.vocab_size}")
        x, y = ids[:, :-1].copy(), ids[:, 1:].copy()
        if self.masked:
            y[np.memmap(self.mask_path, np.uint8, mode="r")[positions[:, 1:]] == 0] = -1
        return x, y
