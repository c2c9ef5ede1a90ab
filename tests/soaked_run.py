"""A run of train.py that faults hit: started in a fork or under torchrun, watched from outside.

What is on the disk is judged here without the code of the project.
"""

import contextlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds until something that should happen counts as a hang


class Lost(Exception):
    """Something is not as promised."""


class Finished(Exception):
    """The run came to its end before the fault."""


class Forked:
    """A fork that becomes a script, with the methods of subprocess.Popen that are needed here."""

    def __init__(self, become: Callable[[], None]):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                become()
            finally:  # an exception must not go up into the parent's code
                os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("the fork", timeout)
            time.sleep(0.001)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def train(work: Path, options: list, said: Path, script="train.py", stdout=None, before=None):
    """`python SCRIPT OPTIONS` in a fork, which costs 0.1 s: torch is imported already.

    said: the file for its output. stdout: a file descriptor instead. before: what the fork calls.
    """

    def become() -> None:
        os.chdir(work)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file if stdout is None else stdout, 1)
        os.dup2(file, 2)
        os.closerange(3, 256)
        sys.stdout = open(1, "w", closefd=False)  # it knows whether its file can seek
        sys.argv, sys.path[0] = [str(ROOT / script), *options], str(ROOT)
        status = 0
        try:
            if before:
                before()
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            try:
                sys.excepthook(*sys.exc_info())
                status = 1
            except SystemExit as end:
                status = end.code
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)

    return Forked(become)


def torchrun(work: Path, options: list, said: Path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *words, "--max-restarts=3", ROOT / "train.py", *options]
    with open(said, "a") as file:
        return subprocess.Popen(command, cwd=work, stdout=file, stderr=file)


def whole(path: Path) -> dict | None:
    """A checkpoint, if it and its parts are there and undamaged; these are its "shards" then."""
    try:
        state = undamaged(path)
        return state | {"shards": [undamaged(part) for part in parts_of(path, state)]}
    except Exception:  # damage shows in many ways
        return None


def undamaged(path: Path):
    with zipfile.ZipFile(path) as file:
        assert not file.testzip()
    return torch.load(path, map_location="cpu", weights_only=True)


def parts_of(path: Path, state: dict) -> list[Path]:
    return [path.parent / "parts" / name for name in state.get("parts", [])]


def same(a, b) -> bool:
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if torch.is_tensor(a) and not a.is_meta:  # these are among the shards
        return torch.equal(a, b)
    return a.shape == b.shape if torch.is_tensor(a) else a == b


def read_log(out: Path) -> list[dict]:
    records = []
    for line in (out / "log.jsonl").read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


class Run:
    """One run: its folder, its process, and what is known of it.

    floor: the step of its newest whole checkpoint when it was looked at last.
    log_is_damaged, best_is_lost: a fault took what nobody can bring back, such as a line.
    before: the last step in its log when the last fault came.
    is_silent: a fault took its standard output.
    """

    def __init__(self, work: Path, name: str, options: list, processes: int, rng: Random):
        self.work, self.out, self.rng, self.processes = work, work / "out" / name, rng, processes
        self.options = [*options, f"--out_dir=out/{name}", "--init_from=auto"]
        self.said, self.floor, self.before = work / "said.txt", 0, 0
        self.log_is_damaged = self.best_is_lost = self.is_silent = False
        self.process = None

    # ---- starting and stopping ----

    def start(self, check: bool = True, **how) -> int:
        """Start or resume it; with `check` the step it resumes from, or Lost if that is wrong."""
        expected = self.check_disk()
        self.said.unlink(missing_ok=True)
        self.is_silent = False
        start = train if self.processes == 1 else torchrun
        self.process = start(self.work, self.options, self.said, **how)
        if not check:
            return expected
        resumed = self.wait_until(self.resumed_steps, "its first line")[-1]
        if resumed < expected or (self.processes == 1 and resumed != expected):
            raise Lost(f"resumed from step {resumed}, while the disk has step {expected}")
        return resumed

    def stop(self, number: int = signal.SIGKILL) -> int:
        """Its status after this signal."""
        self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            raise Lost(f"hangs after signal {number}") from None

    def wait_until(self, look: Callable, what: str):
        """The first true value of look(). Finished if the process ends before, Lost if it hangs."""
        end = time.monotonic() + PATIENCE
        while not (found := look()):
            if self.process.poll() is not None and not (found := look()):
                if self.process.poll() == 0:
                    raise Finished
                raise Lost(f"ended with status {self.process.poll()} before {what}")
            if time.monotonic() > end:
                raise Lost(f"hangs: {what} does not come")
            if found:
                break
            time.sleep(0.0005)
        return found

    def wait_for_training(self) -> None:
        if not self.is_silent:
            self.wait_until(lambda: re.search(r"^step \d", self.text(), re.M), "its first step")

    def wait_for_progress(self) -> None:
        """Or for its end, which has status 1 where the last save met a full disk."""
        step = self.last_step
        try:
            self.wait_until(lambda: self.last_step != step, "the next step")
        except Finished:
            pass
        except Lost:
            text = self.text()
            if self.process.poll() != 1 or "the last checkpoint is not on the disk" not in text:
                raise
            self.best_is_lost |= "ckpt.pt cannot be written" in text

    def wait_for_end(self) -> None:
        """Lost unless it reaches its last step."""
        if self.process.poll() not in (None, 0):
            self.start()
        try:
            status = self.process.wait(2 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Lost("hangs before its end") from None
        if status:
            raise Lost(f"ended with status {status}")
        self.check_what_was_said()

    # ---- what it says, and what its folder holds ----

    def text(self) -> str:
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def resumed_steps(self) -> list[int]:
        """From which steps this process, and under torchrun its restarts, have gone on."""
        return [int(n) for n in re.findall(r"^run +\S+ steps (\d+) to", self.text(), re.M)]

    @property
    def last_step(self) -> int:
        """The last that the log holds."""
        path = self.out / "log.jsonl"
        tail = path.read_bytes()[-9000:] if path.exists() else b""
        found = re.findall(rb'"step": (\d+), "loss".*\n', tail)
        return int(found[-1]) if found else 0

    def check_what_was_said(self) -> None:
        text = self.text()
        if "ckpt.pt cannot be written" in text:
            self.best_is_lost = True
        if "Traceback" in text and (self.processes == 1 or 'train.py", line' in text):
            raise Lost("a traceback")

    def step_on_disk(self) -> int | None:
        """Of the checkpoint that a start should take: ckpt.pt or, if it is damaged, the newest."""
        names = ("ckpt.pt", "ckpt.prev.pt", "best.pt")
        found = [whole(self.out / name) for name in names if (self.out / name).exists()]
        if (self.out / "ckpt.pt").exists() and found[0]:
            return found[0]["step"]
        steps = [state["step"] for state in found if state]
        return max(steps) if steps else None if found else 0

    def check_disk(self) -> int:
        """The step to resume from. Lost if it fell back, or best.pt is not the best."""
        step = self.step_on_disk()
        if step is None:
            raise Lost("no checkpoint is whole")
        if step < self.floor:
            raise Lost(f"the checkpoint fell back from step {self.floor} to {step}")
        self.floor = step
        latest, best = whole(self.out / "ckpt.pt"), whole(self.out / "best.pt")
        if latest and not self.best_is_lost:
            lowest = latest["best_val_loss"]
            if not self.log_is_damaged:  # evaluations of this step and later ones come again
                early = [r for r in read_log(self.out) if 0 < r.get("step", 0) < step]
                lowest = min([lowest, *(r["val_loss"] for r in early if "val_loss" in r)])
            if lowest < float("inf") and not (best and best["best_val_loss"] <= lowest):
                has = best and best["best_val_loss"]
                raise Lost(f"the lowest validation loss is {lowest}, that of best.pt {has}")
        return step
