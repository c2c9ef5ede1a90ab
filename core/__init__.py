"""What the scripts share, one noun per file. Nothing here runs on import."""

import os
import sys


class UserError(Exception):
    """A mistake outside our code, as one sentence: what, the value, what is accepted, what to do.

    Our own bugs are asserts and keep their traceback.
    """


def print_user_error(kind: type[BaseException], error: BaseException, traceback) -> None:
    """A sys.excepthook: what the user can mend is one sentence and exit status 2."""
    status, sentence = 2, str(error)
    if issubclass(kind, BrokenPipeError):  # the reader, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141)
    if issubclass(kind, KeyboardInterrupt):
        status, sentence = 130, "interrupted"
    elif issubclass(kind, ModuleNotFoundError):
        sentence = f"this needs the package {error.name}: pip install {error.name}"
    elif issubclass(kind, OSError) and error.filename:
        sentence = f"{error.filename}: {error.strerror}."
    elif kind.__name__ == "OutOfMemoryError":
        sentence = f"out of GPU memory: lower --batch_size or --block_size. {error}"
    elif not issubclass(kind, UserError):
        sys.__excepthook__(kind, error, traceback)
        return
    rank = os.environ.get("RANK", "0")
    script = os.path.basename(sys.argv[0]) + (f" [rank {rank}]" if rank != "0" else "")
    # torch.distributed's own hook, around this one, would swallow what goes to sys.stderr
    print(f"{script}: {sentence}", file=sys.__stderr__)
    raise SystemExit(status)
