"""Files that are old or new after a crash, never half-written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO


@contextmanager
def replacing(path: str, mode: str = "wb", keep_as: str = "", **options) -> Iterator[IO]:
    """A new file to write to, which takes the place of `path` at the end of the block.

    It is on the disk before it is renamed; after an error nothing is left of it.
    keep_as: the name that the replaced file then has; by default it is gone.
    """
    temporary = f"{path}.tmp"
    with suppress(FileNotFoundError):  # of a process that was killed
        os.remove(temporary)
    try:
        # x: not through a link that somebody may have put there
        with open(temporary, mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_as and os.path.exists(path):
            with suppress(FileNotFoundError):
                os.remove(keep_as)
            try:
                os.link(path, keep_as)  # a second name, so that `path` is there at any moment
            except OSError:  # a file system without links
                os.replace(path, keep_as)
        os.replace(temporary, path)
        sync_folder(os.path.dirname(path))
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def sync_folder(path: str) -> None:
    """Put the names in a folder on the disk, so that a power cut does not undo a renaming."""
    if os.name == "nt":  # there a folder cannot be opened
        return
    folder = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(folder)
