"""Files that are old or new after a crash, never half-written; torch's files, read safely."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch

from core import UserError


@contextmanager
def replacing(path: str, mode="wb", also="", keep_as="", **options) -> Iterator[IO]:
    """A new file to write to, which takes the place of `path` at the end of the block.

    It is on the disk before it is renamed; after an error nothing is left of it.
    also: a second name for the new file. keep_as: the name that the replaced file then has.
    """
    temporary = Path(f"{path}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    try:
        # x: not through a link that somebody may have put there
        with open(temporary, mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if also:
            add_name(temporary, also)
        if keep_as and os.path.exists(path):
            add_name(path, keep_as)
        os.replace(temporary, path)
        sync_folder(os.path.dirname(path))
    finally:
        temporary.unlink(missing_ok=True)


def add_name(path: str | Path, name: str) -> None:
    """Let `name` be another name of the file `path`, or a copy; a file of that name is replaced."""
    if os.path.exists(name) and os.path.samefile(path, name):  # renaming would do nothing
        return
    try:
        os.link(path, f"{name}.tmp")
        os.replace(f"{name}.tmp", name)
    except OSError:  # a file system without links
        with open(path, "rb") as file, replacing(name) as copy:
            shutil.copyfileobj(file, copy)


def sync_folder(path: str) -> None:
    """Put the names in a folder on the disk, so that a power cut does not undo a renaming."""
    if os.name == "nt":  # there a folder cannot be opened
        return
    folder = os.open(path or ".", os.O_RDONLY)
    with suppress(OSError):  # some network file systems cannot
        os.fsync(folder)
    os.close(folder)


def load_torch(path: str):
    """What torch.save wrote, on the CPU, large tensors still in the file; no code is run.

    UserError if it is damaged or holds more than tensors and plain types.
    """
    is_zip = zipfile.is_zipfile(path)  # it is not in files of before 2020, such as DialoGPT's
    mmap = is_zip and os.name != "nt"  # Windows would not let a run replace a file that is mapped
    try:
        if is_zip:  # torch does not look at its checksums: 0.3 s per GB
            with zipfile.ZipFile(path) as file:
                if damaged := file.testzip():
                    raise ValueError(f"the checksum of {damaged} differs")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damage shows in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        if isinstance(error, pickle.UnpicklingError):  # torch would say how to run it all the same
            reason = "it holds more than tensors, numbers and text"
        raise UserError(f"{path} is damaged or not a checkpoint: {reason}") from error
