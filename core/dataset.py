"""The format on disk, written and read: data/NAME/{train,val}.bin + meta.json.

    with Writer("data/toy", ByteTokenizer(), source={"name": "toy.txt"}) as writer:
        writer.append("train", [104, 105, 10])
        writer.append("val", [104, 10])

    data/toy/train.bin   68 00 69 00 0a 00: token ids, little-endian uint16 (uint32 for large ones)
    data/toy/meta.json   {"tokenizer": {"kind": "byte"}, "dtype": "uint16", "row_length": null, ...}

With a mask, train.mask.bin holds one uint8 a token: 1 where the token is graded as a target.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from glob import glob

import numpy as np
import torch

from core import UserError
from core.tokenizer import GPT2Tokenizer, Tokenizer

SPLITS = ("train", "val")
NAMES = ["meta.json", *(f"{split}{end}" for split in SPLITS for end in (".bin", ".mask.bin"))]
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
RESIDENT_TOKENS = 2**26  # up to here a split lives on the device, as int32: 256 MiB
AGAIN = "run its prepare script again."


class Writer:
    """Writes a dataset in a stream; what stood in the folder stays until the new one is whole.

    row_length: None for a stream of text; N where each N tokens are an example of their own.
    source: where the text came from, kept in meta.json and shown by train.py.
    task: what the rows mean to whoever uses a model of them; a checkpoint keeps it.
    resumable: what `checkpoint` has secured outlives an interruption, and the next Writer of the
        same dataset goes on after it.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: Tokenizer,
        source: dict,
        row_length: int | None = None,
        task: dict | None = None,
        resumable: bool = False,
    ):
        self.folder, self.files, self.counts = folder, {}, dict.fromkeys(SPLITS, 0)
        self.resumable, self.progress = resumable, None  # what was given to `checkpoint` last
        self.meta = {
            "tokenizer": tokenizer.to_dict(),
            "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
            "row_length": row_length,
            "source": source,
        }
        self.meta |= {"task": task} if task else {}

    def __enter__(self) -> "Writer":
        os.makedirs(self.folder, exist_ok=True)
        if self.resumable and os.path.exists(self.temporary("progress")):
            with open(self.temporary("progress"), encoding="utf-8") as file:
                saved = json.load(file)
            if saved["meta"] == self.meta:
                self.progress, self.counts = saved["progress"], saved["counts"]
                for name, size in saved["sizes"].items():
                    self.files[name] = open(self.temporary(name), "r+b")
                    self.files[name].truncate(size)  # what came after the checkpoint comes again
                    self.files[name].seek(size)
        return self

    def append(self, split: str, ids, mask=None) -> None:
        """Add token ids, and as many zeros and ones if the dataset is masked."""
        self.write(f"{split}.bin", np.asarray(ids).astype(DTYPES[self.meta["dtype"]]))
        if mask is not None:
            assert len(mask) == len(ids), "one mask byte a token"
            self.write(f"{split}.mask.bin", np.asarray(mask, np.uint8))
        self.counts[split] += len(ids)

    def write(self, name: str, array: np.ndarray) -> None:
        if name not in self.files:
            self.files[name] = open(self.temporary(name), "wb")
        self.files[name].write(array.tobytes())

    def temporary(self, name: str) -> str:
        ending = "partial" if self.resumable else f"{os.getpid()}.tmp"
        return os.path.join(self.folder, f".{name}.{ending}")

    def checkpoint(self, progress) -> None:
        """Secure what was written so far; `progress` is how far that is, in the caller's terms."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self.files.items()}
        saved = {"meta": self.meta, "progress": progress, "counts": self.counts, "sizes": sizes}
        path = self.temporary("progress")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(saved, file)
        os.replace(path + ".new", path)

    def __exit__(self, kind, error, traceback) -> None:
        """Rename everything into place, or leave nothing. meta.json goes first: its counts betray
        a swap cut short, and a folder without it would pass for nanoGPT's."""
        try:
            if kind is None:
                self.put_in_place()
        except OSError as full:
            error = full
        for file in self.files.values():
            with contextlib.suppress(OSError):  # a full disk, reported already
                file.close()
        for name in NAMES:  # even one that was opened when the interruption came
            if os.path.exists(self.temporary(name)) and not (self.resumable and error):
                os.remove(self.temporary(name))
        if not error and os.path.exists(self.temporary("progress")):
            os.remove(self.temporary("progress"))
        if isinstance(error, OSError):
            raise UserError(
                f"{self.folder} can't be written ({error.strerror}); what stood there is kept."
            ) from error

    def put_in_place(self) -> None:
        counts = {f"{split}_tokens": count for split, count in self.counts.items()}
        meta = json.dumps({**self.meta, **counts}, ensure_ascii=False, indent=1)
        self.write("meta.json", np.frombuffer(meta.encode(), np.uint8))
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name in sorted(self.files, key=lambda name: name != "meta.json"):
            os.replace(self.temporary(name), os.path.join(self.folder, name))
        masks = [f"{split}.mask.bin" for split in SPLITS]
        for stale in {*masks} - {*self.files} & {*os.listdir(self.folder)}:
            os.remove(os.path.join(self.folder, stale))


def read_meta(folder: str) -> dict:
    """meta.json; for a folder of .bin files without one, what nanoGPT's files are."""
    path = os.path.join(folder, "meta.json")
    if not os.path.exists(path):
        source = {"name": "GPT-2 tokens, since there is no meta.json"}
        kind = GPT2Tokenizer.kind
        return dict(tokenizer={"kind": kind}, dtype="uint16", row_length=None, source=source)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from None


def ensure_prepared(folder: str, command: str, retry_fallback: bool) -> None:
    """Run the prepare command where the dataset is missing, or only stands in for a download.

    command: a prepare script of this repository and its options; "" if there is none.
    """
    wanted = os.path.join(folder, "train.bin")
    if os.path.exists(wanted):
        if not (retry_fallback and command and read_meta(folder)["source"].get("fallback")):
            return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if command:
        script, *options = shlex.split(command)
        subprocess.run([sys.executable, os.path.join(root, script), *options])
        if not os.path.exists(wanted):
            raise UserError(f"there is no {wanted}, and `python {command}` did not make it.")
    elif not os.path.exists(wanted):
        scripts = ", ".join(sorted(map(os.path.basename, glob(f"{root}/prepare_*.py"))))
        raise UserError(
            f"there is no {wanted}: put the train.bin and val.bin there that nanoGPT's "
            f"data/{os.path.basename(folder)}/prepare.py writes, or run one of {scripts} and add "
            "--dataset= with the name of the folder it makes."
        )


class Split:
    """One split of a dataset: its files, checked, and its tokens on the device if they are few."""

    def __init__(self, folder: str, name: str, meta: dict, vocab_size: int, device: torch.device):
        self.path, self.mask_path = (f"{folder}/{name}{suffix}" for suffix in (".bin", ".mask.bin"))
        self.masked, self.dtype = os.path.exists(self.mask_path), DTYPES[meta["dtype"]]
        self.vocab_size, self.device = vocab_size, device
        if not os.path.exists(self.path):
            raise UserError(f"{self.path} is not there: {AGAIN}")
        size = os.path.getsize(self.path)
        self.length = size // self.dtype.itemsize
        if size % self.dtype.itemsize:
            raise UserError(f"{self.path} has {size} bytes, no multiple of {self.dtype}: {AGAIN}")
        if meta.get(f"{name}_tokens", self.length) != self.length:
            expected = meta[f"{name}_tokens"]
            raise UserError(f"{self.path} has {self.length} tokens, not {expected}: {AGAIN}")
        if self.masked and os.path.getsize(self.mask_path) != self.length:
            raise UserError(f"{self.mask_path} has not one byte a token: {AGAIN}")
        self.tokens = self.mask = None
        if self.length <= RESIDENT_TOKENS:
            ids = np.fromfile(self.path, self.dtype).astype(np.int32)
            self.check(ids)
            self.tokens = torch.from_numpy(ids).to(device)
            if self.masked:
                self.mask = torch.from_numpy(np.fromfile(self.mask_path, np.uint8)).to(device)

    def check(self, ids: np.ndarray) -> None:
        if ids.size and (largest := int(ids.max())) >= self.vocab_size:
            raise UserError(
                f"{self.path} holds the id {largest}, but its vocabulary has {self.vocab_size}: "
                f"its meta.json belongs to other data; {AGAIN}"
            )

    def rows(self, starts: np.ndarray, T: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y, (len(starts), T) int64, y being x one token on, and -1 where not graded."""
        mask = None
        if self.tokens is not None:
            where = self.send(starts)[:, None] + torch.arange(T + 1, device=self.device)
            rows = self.tokens[where].long()
            mask = self.mask[where[:, 1:]] if self.masked else None
        else:  # maps opened for each batch let go of the pages read: memory does not grow
            where = starts[:, None] + np.arange(T + 1)
            ids = np.memmap(self.path, self.dtype, mode="r")[where]
            self.check(ids)
            rows = self.send(ids.astype(np.int64))
            if self.masked:
                mask = self.send(np.memmap(self.mask_path, np.uint8, mode="r")[where[:, 1:]])
        x, y = rows[:, :-1].contiguous(), rows[:, 1:].clone()  # a row alone is contiguous: a view
        return x, y if mask is None else y.masked_fill_(mask == 0, -1)

    def send(self, array: np.ndarray) -> torch.Tensor:
        """To the device; from pinned memory a GPU copies while it computes."""
        tensor = torch.from_numpy(array)
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)
