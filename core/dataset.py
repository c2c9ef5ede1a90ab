"""The format on disk, written and read: data/NAME/{train,val}.bin + meta.json, see data/README.md.

with Writer("data/toy", ByteTokenizer(), source={"name": "toy.txt"}) as writer:
    writer.append("train", [104, 105, 10])
"""

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys

import numpy as np

from core import PREPARE, UserError, name_of_script
from core.distributed import local_rank_first, signals_wait
from core.files import replacing
from core.tokenizer import Tokenizer, from_dict

SPLITS = ("train", "val")
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEFAULTS = {"dtype": "uint16", "row_length": None, "task": None, "use": "", "prepare": None}
DEFAULTS |= {"source": {"name": "an unknown source"}, "fingerprints": {}, "val_bytes": 0}
TYPES = {"row_length": int | None, "use": str, "fingerprints": dict, "val_bytes": int}


def folder_for(name: str) -> str:
    """data/NAME, to write a dataset to; UserError if that is not below data/."""
    folder = os.path.normpath(os.path.join("data", name))
    if not folder.startswith(os.path.join("data", "")):
        raise UserError(f"--name={name} is not below data/: give a name such as my_text.")
    return folder


class Writer:
    """Writes a dataset piece by piece; the old one stays until the new one is whole.

    source: where the text came from. row_length: None for a stream of text; N where every N tokens
    are an example. task: what the examples mean to whoever uses a model of them. use: the command
    that does so, in which {out_dir} stands for a run's folder; "" = sample.py with a prompt.
    """

    def __init__(self, folder, tokenizer, source, row_length=None, task=None, use=""):
        self.folder, self.files, self.stack = folder, {}, contextlib.ExitStack()
        self.counts, self.unknown = dict.fromkeys(SPLITS, 0), tokenizer.unknown
        self.meta = {"tokenizer": tokenizer.to_dict(), "row_length": row_length, "source": source}
        self.meta["dtype"] = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self.meta |= {"task": task, "use": use, "train_bytes": 0, "val_bytes": 0}
        self.meta["prepare"] = os.environ.get(PREPARE) or [name_of_script(), *sys.argv[1:]]

    def __enter__(self) -> "Writer":
        os.makedirs(self.folder, exist_ok=True)
        with contextlib.suppress(ImportError, OSError):  # Windows, some network file systems
            import fcntl

            lock = os.open(self.folder, os.O_RDONLY)
            self.stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{self.folder} is being written by another process: waiting ...", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        return self

    def append(self, split: str, ids, mask=None, num_bytes: int = 0) -> None:
        """Add token ids, with a loss mask as many ones (a target) and zeros (ignored).

        <unk>, which stands for no text, is never a target.
        num_bytes: the length in UTF-8 of the text that they stand for, for bits per byte.
        """
        ids = np.asarray(ids)
        self.write(f"{split}.bin", ids.astype(DTYPES[self.meta["dtype"]]))
        if self.unknown is not None:
            known = ids != self.unknown
            mask = known if mask is None else known & np.asarray(mask, bool)
        if mask is not None:
            assert len(mask) == len(ids), "one mask byte per token"
            self.write(f"{split}.mask.bin", np.asarray(mask, np.uint8))
        self.counts[split] += len(ids)
        self.meta[f"{split}_bytes"] += num_bytes

    def write(self, name: str, array: np.ndarray) -> None:
        if name not in self.files:
            new = replacing(os.path.join(self.folder, name))
            self.files[name] = self.stack.enter_context(new)
        self.files[name].write(array.tobytes())

    def __exit__(self, kind, error, traceback) -> None:
        """Let the new files take their places, or leave nothing of them."""
        with signals_wait():
            if kind is None:
                self.stack.callback(self.write_meta)  # the last to be added is called first
            self.stack.__exit__(kind, error, traceback)

    def write_meta(self) -> None:
        """Before the files take their places: its fingerprints reveal it if some could not."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.meta["fingerprints"] = {n: fingerprint(file.name) for n, file in self.files.items()}
        self.meta |= {f"{split}_tokens": count for split, count in self.counts.items()}
        with replacing(os.path.join(self.folder, "meta.json"), "w", encoding="utf-8") as file:
            json.dump(self.meta, file, ensure_ascii=False, indent=1)
        for name in {"train.mask.bin", "val.mask.bin"} - set(self.files):
            for old in (name, f"{name}.tmp"):  # the second of a process that was killed
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(self.folder, old))


def fingerprint(path: str) -> str:
    """A hash of a file's size and of 64 evenly spaced parts, up to 4 MiB all of it: milliseconds.

    Another text has another one; a bit that flips in a larger file may go unseen.
    """
    size, part = os.path.getsize(path), 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(max(0, size - part) * i // 63)
            digest.update(file.read(part))
    return digest.hexdigest()


def read_meta(folder: str) -> dict:
    """meta.json, see data/README.md; of a folder that nanoGPT made, what its files say."""
    path = os.path.join(folder, "meta.json")
    try:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                meta = {**DEFAULTS, **json.load(file)}
        else:
            from core.extras import nanogpt

            meta = {**DEFAULTS, **nanogpt.read_meta(folder)}
        for key, kinds in TYPES.items():
            if not isinstance(meta[key], kinds):
                raise ValueError(f"{key} is {str(meta[key])[:40]}")
        if meta["row_length"] is not None and meta["row_length"] < 2:
            raise ValueError(f"row_length is {meta['row_length']}")
        from_dict(meta["tokenizer"])
        DTYPES[meta["dtype"]], meta["source"]["name"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}): run its prepare script again.") from None
    return meta


def is_made_by(folder: str, command: str) -> bool:
    """Whether the dataset is there, and, if there is a command, was not made by another one.

    One that was made by hand may have more options, such as --input.
    """
    is_there = os.path.exists(os.path.join(folder, "train.bin"))
    if not is_there or not command:
        return is_there
    made = read_meta(folder)["prepare"]
    if isinstance(made, list):
        return all(word in made for word in shlex.split(command))
    return made in (command, None)


def ensure_prepared(folder: str, command: str) -> Tokenizer:
    """The dataset's tokenizer; its prepare command runs first, unless that is what made it.

    command: a script or module of this repository with its options; "" if there is none.
    """
    with local_rank_first():
        if command and not is_made_by(folder, command):
            script, *options = shlex.split(command)
            start = [os.path.join(ROOT, script)] if script.endswith(".py") else ["-m", script]
            path = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "PYTHONPATH": path, PREPARE: command}
            with subprocess.Popen([sys.executable, *start, *options], env=environment) as process:
                try:
                    process.wait()
                except BaseException:  # a signal: the script cleans up, and is waited for
                    process.terminate()
                    raise
    if not is_made_by(folder, command):
        from core.extras.help import no_dataset

        raise no_dataset(folder, command)
    return from_dict(read_meta(folder)["tokenizer"])


class Split:
    """The .bin file of one split, checked, and its loss mask if there is one.

    Both stay open: a dataset that is replaced meanwhile leaves a run its own text.
    """

    def __init__(self, folder: str, name: str, meta: dict, vocab_size: int):
        self.path = os.path.join(folder, f"{name}.bin")
        mask_path = os.path.join(folder, f"{name}.mask.bin")
        self.dtype, self.vocab_size = DTYPES[meta["dtype"]], vocab_size
        self.masked = os.path.exists(mask_path)
        paths = [self.path, mask_path] if self.masked else [self.path]
        self.files = [open(path, "rb") for path in paths]
        self.fingerprints = {os.path.basename(path): fingerprint(path) for path in paths}
        for name, found in self.fingerprints.items():
            if meta["fingerprints"].get(name, found) != found:
                self.fail("is not the file that meta.json describes")
        self.length = os.path.getsize(self.path) // self.dtype.itemsize
        if self.masked and os.path.getsize(mask_path) != self.length:
            self.fail(f"has {self.length} tokens, and its mask has another number")

    def fail(self, what: str) -> None:
        raise UserError(f"{self.path} {what}: run its prepare script again.")

    def sequences(self, starts: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
        """x and y, (len(starts), T) int64: y is x one token later, and -1 where it is ignored.

        After the last target of the split comes its first one again.
        """
        positions = (starts[:, None] + np.arange(T)) % (self.length - 1)
        # maps opened for each batch let go of the pages that were read: memory does not grow
        ids = np.memmap(self.files[0], self.dtype, mode="r", shape=self.length)
        x, y = ids[positions].astype(np.int64), ids[positions + 1].astype(np.int64)
        largest = max(x.max(initial=0), y.max(initial=0))
        if largest >= self.vocab_size:
            self.fail(f"has the id {largest}, beyond its vocabulary of {self.vocab_size}")
        if self.masked:
            y[np.memmap(self.files[1], np.uint8, mode="r")[positions + 1] == 0] = -1
        return x, y
