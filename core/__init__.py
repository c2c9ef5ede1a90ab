"""What the scripts share, one noun per file. Nothing here runs on import."""

import atexit
import ctypes
import io
import json
import os
import signal
import sys
import time

PREPARE = "FOLIO_PREPARE"  # in the environment: the setting `prepare` that a script was started by


class UserError(Exception):
    """A mistake outside our code, as one sentence: what, the value, what is accepted, what to do.

    Our own bugs are asserts and keep their traceback.
    """


def set_up_script() -> None:
    """What every script wants of its process, before anything else is imported."""
    sys.excepthook = print_user_error
    if os.environ.get("RANK", "0") == "0":  # others have none, and may wait where Python cannot act
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):  # end by way of the script's clean-up
            number = getattr(signal, name, signal.SIGTERM)
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks for
                signal.signal(number, end_by_signal)
    if PREPARE in os.environ:  # train.py has started it
        end_with_parent()
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what its encoding lacks is a question mark


def name_of_script() -> str:
    """Of the script that runs, without its folder, or of the module, if it was started by -m."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else os.path.basename(sys.argv[0])


def end_with_parent() -> None:
    """On Linux, get SIGTERM when the process that started this one ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end_by_signal(number: int, frame) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one does not cut the clean-up short
    sys.unraisablehook = lambda _: None  # silence destructors of objects that are half made
    sys.exit(128 + number)


def print_user_error(kind: type[BaseException], error: BaseException, traceback) -> None:
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


def exit_at_once(status: int, wait: bool = True) -> None:
    """End without the interpreter's teardown, in which gloo aborts in 2 of 60 runs.

    wait: for what others asked for at the end, such as trackers that still send.
    """
    if wait:
        atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def let_other_ranks_speak() -> None:
    """Under torchrun, wait: if another rank has failed first this process is ended without a word.

    All ranks make the same mistake, and one that dies makes the others fail.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun sends it
        time.sleep(5)
