"""What the scripts share, one noun per file. Nothing here runs on import."""

import ctypes
import io
import os
import signal
import sys

PREPARE = "FOLIO_PREPARE"  # in the environment: the setting `prepare` that a script was started by


class UserError(Exception):
    """A mistake outside our code, as one sentence: what, the value, what is accepted, what to do.

    Our own bugs are asserts and keep their traceback.
    """


def set_up_script() -> None:
    """What every script wants of its process, before anything else is imported."""
    sys.excepthook = report_error
    if os.environ.get("RANK", "0") == "0":  # others clean nothing up, and may wait in C++
        for number in stop_signals():
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


def stop_signals() -> list[int]:
    """SIGTERM, SIGHUP of a terminal that closes, SIGUSR1 of a cluster whose time ends.

    Without those that are ignored, as nohup asks for.
    """
    names = ("SIGTERM", "SIGHUP", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def end_by_signal(number: int, frame) -> None:
    """End by way of the script's clean-up."""
    signal.signal(number, signal.SIG_IGN)  # a second one does not cut the clean-up short
    sys.unraisablehook = lambda _: None  # silence destructors of objects that are half made
    sys.exit(128 + number)


def report_error(kind: type[BaseException], error: BaseException, traceback) -> None:
    """A sys.excepthook: what the user can mend is one sentence and exit status 2."""
    from core.extras import ending

    ending.report(kind, error, traceback)
