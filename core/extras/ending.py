"""How a script ends that does not run to its end, or that is one of several processes."""

import atexit
import json
import os
import signal
import sys
import time

from core import UserError


def report(kind: type[BaseException], error: BaseException, traceback) -> None:
    """A sys.excepthook: what the user can mend is one sentence and exit status 2."""
    status, sentence = 2, " ".join(str(error).splitlines())
    if issubclass(kind, BrokenPipeError):  # the reader, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141)
    if issubclass(kind, KeyboardInterrupt):
        status, sentence = 130, "interrupted"
    elif issubclass(kind, ModuleNotFoundError):
        sentence = f"this needs the package {error.name}: pip install {error.name}"
    elif issubclass(kind, OSError) and error.strerror:
        sentence = f"{error.filename}: " if error.filename else ""  # a full disk names none
        sentence += f"{error.strerror}."
    elif kind.__name__ == "OutOfMemoryError" or "can't allocate memory" in sentence:
        sentence = f"out of memory: lower --batch_size or --block_size. {error}"
    elif issubclass(kind, RuntimeError) and is_from_distributed(kind, sentence):
        let_other_ranks_speak()
        sentence = (
            "the other processes cannot be reached: one has ended, or hangs, or the network is "
            f"down; resume with --init_from=resume. ({sentence[:200]})"
        )
    elif not issubclass(kind, UserError):
        let_other_ranks_speak()
        sys.__excepthook__(kind, error, traceback)
        return
    script = os.path.basename(sys.argv[0])
    if "TORCHELASTIC_ERROR_FILE" in os.environ and status == 2:  # torchrun's report ends with it
        if os.environ["RANK"] != "0":
            let_other_ranks_speak()
        message = {"message": f"\n{script}: {sentence}", "extraInfo": {"timestamp": time.time()}}
        with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w", encoding="utf-8") as file:
            json.dump({"message": message}, file)
    else:
        # torch.distributed's own hook, around this one, would swallow what goes to sys.stderr
        print(f"{script}: {sentence}", file=sys.__stderr__)
    if "TORCHELASTIC_ERROR_FILE" in os.environ or status == 130:
        exit_at_once(status, wait=status != 130)  # Ctrl-C waits for no compiler that is at work
    raise SystemExit(status)


def is_from_distributed(kind: type[BaseException], sentence: str) -> bool:
    """Whether torch.distributed raised it: gloo has no exception class of its own."""
    return kind.__name__.startswith("Dist") or "gloo" in sentence


def let_other_ranks_speak() -> None:
    """Under torchrun, wait: if another rank has failed first this process is ended without a word.

    All ranks make the same mistake, and one that dies makes the others fail.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun sends it
        time.sleep(5)


def exit_at_once(status: int, wait: bool = True) -> None:
    """End without the interpreter's teardown, in which gloo aborts in 2 of 60 runs.

    wait: for what others asked for at the end, such as trackers that still send.
    """
    if wait:
        atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)
