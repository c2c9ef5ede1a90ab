"""The folder of a run, out/NAME: one run at a time, and what an earlier one left in it is kept."""

import importlib
import itertools
import os
import shutil
from contextlib import suppress
from glob import escape, glob

from core import UserError
from core.checkpoint import BEST, LATEST, PARTS, PREVIOUS
from core.distributed import RANK

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCKS = []  # open files: a lock lasts as long as its file is open


def check_outputs(settings: dict) -> None:
    """Fail before the work if out_dir is in use or read-only, or a tracker's package is missing."""
    if RANK > 0 or settings["eval_only"]:
        return
    for package in ("wandb", "tensorboard"):
        if settings[f"{package}_log"]:
            importlib.import_module(package)
    folder = settings["out_dir"]
    try:
        os.makedirs(folder, exist_ok=True)
        lock(folder)
        for name in (LATEST, PREVIOUS, BEST, "log.jsonl"):
            with suppress(FileNotFoundError):
                os.remove(os.path.join(folder, f"{name}.tmp"))  # of a run that was killed
    except OSError as error:
        raise UserError(f"out_dir={folder!r} cannot be written: {error.strerror}.") from None


def lock(folder: str) -> None:
    """Keep other runs out of a folder while this process lives; UserError if one is in it."""
    file = open(os.path.join(folder, ".lock"), "a+")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"out_dir={folder} is in use by process {file.read()}: wait for it or end it, or "
            "choose another --out_dir."
        ) from None
    except OSError:  # some network file systems have no locks: the run is not protected there
        pass
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    LOCKS.append(file)


def backup_previous_run(folder: str) -> str | None:
    """Move an earlier run's own files to FOLDER-1, -2, ...; that folder, None if there was no run.

    Other files, and the folders of other runs, stay where they are.
    """
    owned = (LATEST, f"{LATEST}.damaged", PREVIOUS, BEST, PARTS, "log.jsonl")
    owned = (*owned, "events.out.tfevents.*")
    found = [path for name in owned for path in glob(os.path.join(escape(folder), name))]
    if not found:
        return None
    backups = (f"{os.path.abspath(folder)}-{n}" for n in itertools.count(1))
    backup = next(name for name in backups if not os.path.lexists(name))
    os.mkdir(backup)
    for path in found:
        shutil.move(path, backup)
    return os.path.relpath(backup)
