"""The folder of a run, out/NAME: one run at a time, and what an earlier one left in it is kept."""

import importlib
import itertools
import os
import shutil
from glob import escape, glob
from pathlib import Path

from core import UserError
from core.checkpoint import BEST, LATEST, PARTS, PREVIOUS
from core.distributed import RANK

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

FILES = (LATEST, PREVIOUS, BEST, "log.jsonl")  # which are replaced whole


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
        for name in FILES:
            Path(folder, f"{name}.tmp").unlink(missing_ok=True)  # of a run that was killed
    except OSError as error:
        raise UserError(f"out_dir={folder!r} cannot be written: {error.strerror}.") from None


def lock(folder: str) -> None:
    """Keep other runs out of a folder while this process lives; UserError if one is in it."""
    file = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o666)  # never closed
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(file, 20).decode()
        raise UserError(
            f"out_dir={folder} is in use by process {pid}: wait for it or end it, or choose "
            "another --out_dir."
        ) from None
    except OSError:  # some network file systems have no locks: the run is not protected there
        pass
    os.ftruncate(file, 0)
    os.write(file, str(os.getpid()).encode())


def backup_previous_run(folder: str) -> str | None:
    """Move an earlier run's own files to FOLDER-1, -2, ...; that folder, None if there was no run.

    Other files, and the folders of other runs, stay where they are.
    """
    others = (f"{LATEST}.damaged", PARTS, "events.out.tfevents.*")
    found = [path for name in FILES + others for path in glob(os.path.join(escape(folder), name))]
    if not found:
        return None
    backups = (f"{os.path.abspath(folder)}-{n}" for n in itertools.count(1))
    backup = next(name for name in backups if not os.path.lexists(name))
    os.mkdir(backup)
    for path in found:
        shutil.move(path, backup)
    return os.path.relpath(backup)
