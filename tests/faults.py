"""The faults that tests/soak.py injects: each a function of the run, which is training.

Each returns a few words on what it did, "" if it was not possible, and leaves the run training or
ended. Where a fault must be refused, it checks so itself.
"""

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

from soaked_run import PATIENCE, Finished, Lost, Run, parts_of, torchrun, train, whole

__all__ = ["FAULTS", "Finished"]
FAULTS = {}
STOP = {"term": signal.SIGTERM, "hup": signal.SIGHUP, "usr1": signal.SIGUSR1, "int": signal.SIGINT}


def fault(*processes: int, needs_small_disk: bool = False):
    """Register a fault for runs of so many processes."""

    def register(function):
        function.processes, function.needs_small_disk = processes, needs_small_disk
        FAULTS[function.__name__] = function
        return function

    return register


def wait_for_moment(run: Run) -> str:
    """Let the run train until a random moment; what it does then. Finished if it ends before."""
    rng = run.rng
    where = rng.choice(["start", "step", "step", "evaluation", "save"])
    if run.processes > 1:
        where = "step"
    if where == "start":
        run.stop()
        run.start(check=False)
        time.sleep(rng.uniform(0, 0.15))
    else:
        run.wait_for_training()
    if where == "step":
        target = run.last_step + rng.randint(1, 60 * run.processes)
        run.wait_until(lambda: run.last_step >= target, "a step")
        time.sleep(rng.uniform(0, 0.005))
    if where == "evaluation":
        run.wait_until(lambda: run.last_step % 20 == 0, "an evaluation")
        time.sleep(rng.uniform(0, 0.01))
    if where == "save":
        run.wait_until((run.out / "ckpt.pt.tmp").exists, "a save")
        time.sleep(rng.choice([0, rng.uniform(0, 0.005)]))
    run.before = run.last_step
    return f"at a random {where}" if where != "start" else "at the start"


def stop(run: Run, name: str) -> str:
    """A signal that asks to stop: what was computed is saved, and the status tells the signal."""
    where, number = wait_for_moment(run), STOP[name]
    status = run.stop(number)
    run.check_what_was_said()
    if status == 0 or "done; to see" in run.text():  # the signal came after its last save
        raise Finished
    if where != "at the start" and run.processes == 1 and status != 128 + number:
        raise Lost(f"status {status} after signal {number} while training")
    if "stopped after" in run.text():
        step = int(run.text().split("stopped after ")[1].split()[0])
        if run.step_on_disk() < step:
            raise Lost(f"stopped after {step} steps, and the disk has step {run.step_on_disk()}")
    elif where != "at the start" and not run.is_silent:
        raise Lost(f"stopped by signal {number} without a word")
    return where


@fault(1)
def kill(run: Run) -> str:
    where = wait_for_moment(run)
    run.stop()
    return where


@fault(1, 2)
def term(run: Run) -> str:
    return stop(run, "term")


@fault(1)
def hup(run: Run) -> str:
    return stop(run, "hup")


@fault(1)
def usr1(run: Run) -> str:
    return stop(run, "usr1")


@fault(1)
def interrupt(run: Run) -> str:
    return stop(run, "int")


@fault(1)
def two(run: Run) -> str:
    """Two signals in quick succession."""
    where, names = wait_for_moment(run), run.rng.choices(list(STOP), k=2)
    run.process.send_signal(STOP[names[0]])
    time.sleep(run.rng.uniform(0, 0.01))
    run.stop(STOP[names[1]])
    return f"{' and '.join(names)} {where}"


@fault(1)
def cut(run: Run) -> str:
    """SIGKILL before or after the n-th call that renames, removes, links or flushes a file."""
    n, is_after, calls = run.rng.randint(1, 25), run.rng.random() < 0.5, []

    def count(function):
        def counted(*arguments, **options):
            calls.append(function)
            if len(calls) == n and not is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*arguments, **options)
            finally:
                if len(calls) == n:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    def count_all() -> None:
        for name in ("replace", "link", "unlink", "fsync"):
            setattr(os, name, count(getattr(os, name)))

    run.stop()
    run.start(check=False, before=count_all)
    if run.process.wait(PATIENCE) == 0:
        raise Finished
    return f"killed {'after' if is_after else 'before'} file call {n}"


@fault(1)
def full(run: Run) -> str:
    """No file may grow beyond a random size for a while: writes fail as on a full disk."""
    limit, hard = run.rng.randint(0, 500_000), resource.RLIM_INFINITY

    def set_limit(size: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    where = wait_for_moment(run)
    run.log_is_damaged = run.is_silent = True
    set_limit(limit)
    time.sleep(run.rng.uniform(0, 0.4))
    if run.rng.random() < 0.5:
        set_limit(hard)
        return f"{limit:,} bytes, then space again, {where}"
    return end_on_full_disk(run, f"{limit:,} bytes to the end, {where}")


def end_on_full_disk(run: Run, what: str) -> str:
    run.stop(run.rng.choice([signal.SIGKILL, signal.SIGTERM]))
    if run.process.poll() == 0:
        raise Finished
    if "ckpt.pt cannot be written" in run.text() or not run.text():
        run.best_is_lost = True
    return what


@fault(1, needs_small_disk=True)
def filled(run: Run) -> str:
    """The disk is filled, and later not any more."""
    where, filler = wait_for_moment(run), run.work / "filler"
    run.log_is_damaged = run.is_silent = True
    try:
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(run.rng.randint(1, 10_000)))
        time.sleep(run.rng.uniform(0, 0.4))
        if run.rng.random() < 0.5:
            return end_on_full_disk(run, f"until the end, {where}")
    finally:
        filler.unlink()
    return f"and emptied, {where}"


def file_to_damage(run: Run) -> Path | None:
    """A random checkpoint, if another of ckpt.pt and ckpt.prev.pt is whole then."""
    names = [name for name in ("ckpt.pt", "ckpt.prev.pt", "best.pt") if (run.out / name).exists()]
    name = run.rng.choice(names) if names else ""
    others = [run.out / other for other in ("ckpt.pt", "ckpt.prev.pt") if other != name]
    # a kill during a save may leave one file by both names
    others = [path for path in others if path.exists() and not path.samefile(run.out / name)]
    return run.out / name if name and any(map(whole, others)) else None


def end_and_damage(run: Run, damage, what: str) -> str:
    """End the run, damage one checkpoint, and note what may be expected then."""
    wait_for_moment(run)
    run.stop(run.rng.choice([signal.SIGKILL, signal.SIGTERM]))
    if run.process.poll() == 0:
        raise Finished
    run.check_disk()
    path = file_to_damage(run)
    if path is None:
        return ""
    best = run.out / "best.pt"  # often another name of the same file
    run.best_is_lost |= best.exists() and path.samefile(best)
    damaged = run.rng.choice(parts_of(path, whole(path) or {}) or [path])
    damage(damaged)
    run.floor = run.step_on_disk()
    return f"{what} {path.name}" + (f", part {damaged.name}" if damaged != path else "")


@fault(1, 2)
def flip(run: Run) -> str:
    """One bit of one checkpoint."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[run.rng.randrange(len(content))] ^= 1 << run.rng.randrange(8)
        path.write_bytes(content)

    return end_and_damage(run, damage, "a bit of")


@fault(1)
def truncate(run: Run) -> str:
    def damage(path: Path) -> None:
        os.truncate(path, run.rng.randrange(path.stat().st_size))

    return end_and_damage(run, damage, "cut short:")


@fault(1)
def torn(run: Run) -> str:
    """The end of the log is cut off, or garbage."""
    wait_for_moment(run)
    run.stop()
    path = run.out / "log.jsonl"
    if not path.exists():
        return ""
    run.log_is_damaged = True
    if run.rng.random() < 0.5:
        os.truncate(path, max(0, path.stat().st_size - run.rng.randint(1, 300)))
        return "the log's end is cut off"
    garbage = run.rng.choice([b"\0" * 100, b'{"step": 7, "lo', b'[1]\n"x"\n', b"\xff\xfe\n7\n"])
    with open(path, "ab") as file:
        file.write(garbage)
    return "garbage at the log's end"


@fault(1)
def leftover(run: Run) -> str:
    """Temporary files, such as a kill leaves behind."""
    wait_for_moment(run)
    run.stop()
    name = run.rng.choice(["ckpt.pt.tmp", "ckpt.prev.pt.tmp", "best.pt.tmp", "log.jsonl.tmp"])
    run.out.mkdir(parents=True, exist_ok=True)
    (run.out / name).write_bytes(b"half a file")
    return name


@fault(1, 2)
def second(run: Run) -> str:
    """Another run is started in the same folder: one sentence, and the first goes on."""
    run.wait_for_training()
    if run.last_step > 250:  # it might end before the other starts
        return ""
    said, options = run.work / "second.txt", list(run.options)
    said.unlink(missing_ok=True)
    if run.rng.random() < 0.5:
        options.append("--init_from=scratch")
    status = train(run.work, options, said).wait(PATIENCE)
    text = said.read_text()
    if run.process.poll() == 0:
        raise Finished
    if status != 2 or "is in use by process" not in text or len(text.splitlines()) != 1:
        raise Lost(f"a second run in the folder has status {status}: {text}")
    return "started in the same folder"


def exchange_data(run: Run) -> None:
    data = run.work / "data"
    for old, new in (("toy", "third"), ("other", "toy"), ("third", "other")):
        os.rename(data / old, data / new)


@fault(1)
def otherdata(run: Run) -> str:
    """Other data is there at a start: refused with one sentence."""
    wait_for_moment(run)
    run.stop(run.rng.choice([signal.SIGKILL, signal.SIGTERM]))
    if run.process.poll() == 0:
        raise Finished
    if not run.check_disk():
        return ""
    exchange_data(run)
    try:
        run.start(check=False)
        status = run.process.wait(PATIENCE)
    finally:
        exchange_data(run)
    text = run.text()
    if status != 2 or "was trained on other data" not in text or len(text.splitlines()) > 12:
        raise Lost(f"resumed on other data: status {status}: {text}")
    return "refused, then the own data again"


@fault(1)
def underdata(run: Run) -> str:
    """The dataset is replaced under a run, which keeps the old one."""
    run.wait_for_training()
    exchange_data(run)
    time.sleep(run.rng.uniform(0, 0.3))
    exchange_data(run)
    if run.process.poll() == 0:
        raise Finished
    return "replaced while it trained"


@fault(1)
def closed(run: Run) -> str:
    """The reader of its output ends; the run goes on without."""
    run.stop()
    reader, writer = os.pipe()
    run.start(check=False, stdout=writer)
    run.is_silent = True
    os.close(writer)
    time.sleep(run.rng.uniform(0, 0.3))
    os.close(reader)
    return "its output goes nowhere"


@fault(2)
def rank(run: Run) -> str:
    """One of the ranks is killed; torchrun starts them again, three times at most."""
    where, count = wait_for_moment(run), len(run.resumed_steps())
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    if not children:
        raise Finished
    os.kill(int(run.rng.choice(children)), signal.SIGKILL)
    look = lambda: len(run.resumed_steps()) > count or run.process.poll()  # noqa: E731
    run.wait_until(look, "torchrun's restart")
    if run.process.poll():
        return f"killed {where}, no restart left"
    resumed = run.resumed_steps()[-1]
    if resumed < run.floor:
        raise Lost(f"torchrun's restart resumed from step {resumed}, not {run.floor}")
    run.check_disk()
    return f"killed {where}, torchrun resumed from {resumed}"


@fault(2)
def launcher(run: Run) -> str:
    """torchrun is killed, and the command typed again at once, until it is not refused."""
    where = wait_for_moment(run)
    run.stop()
    end, refused = time.monotonic() + PATIENCE, 0
    while time.monotonic() < end:
        run.said.unlink(missing_ok=True)
        run.process = torchrun(run.work, run.options, run.said)
        try:
            resumed = run.wait_until(run.resumed_steps, "its first line")[-1]
        except Lost:
            if "is in use by process" not in run.text():
                raise
            refused += 1
            continue
        if resumed < run.floor:
            raise Lost(f"resumed from step {resumed}, not {run.floor}")
        return f"killed {where}, refused {refused} times, then from {resumed}"
    raise Lost("its ranks keep the folder")
