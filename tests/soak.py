"""Fault injection: small runs that faults hit at random and that are resumed, for some minutes.

    python tests/soak.py --minutes=5 --seed=1
    python tests/soak.py --seed=1 --episode=7       repeats one run with the same faults
    python tests/soak.py --faults=kill,flip         these faults only
    python tests/soak.py --folder=/mnt/small        on a disk below 256 MB: fills it, too

Every episode is one run, of one process or of two under torchrun, brought to its last step against
the faults of tests/faults.py. After each fault the next start must resume from the newest whole
checkpoint; at the end the weights, the optimizer's state and the losses in the log must be those of
a run that nobody disturbed, bit for bit. The status is 1 if anything was lost. Which faults come,
in which order and at about which step is a matter of the seed; at which microsecond is chance.
"""

import argparse
import collections
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # before torch is imported, which counts its threads
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import requests  # noqa: F401  what train.py imports is imported before the first fork
import torch
from faults import FAULTS, Finished
from soaked_run import Lost, Run, read_log, same, train, whole

TINY = [
    *("--dataset=toy", "--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16"),
    *("--batch_size=4", "--gradient_accumulation_steps=2", "--eval_iters=8", "--warmup_iters=2"),
    *("--eval_interval=20", "--log_interval=1", "--device=cpu", "--dtype=float32"),
    *("--compile=False", "--dropout=0.1", "--learning_rate=0.01", "--max_iters=400"),
]
CONFIGS = {
    "adamw": ["--optimizer=adamw"],
    "muon": ["--optimizer=muon", "--rotary", "--rms_norm", "--smear=2"],
    "best only": ["--always_save_checkpoint=False"],
    "parts": ["--strategy=fsdp", "--checkpoint_parts=True"],  # alone, one process saves one file
}
TORCHRUN = [2, 6]  # of every 8 episodes, these run two processes
END = "the end, bit for bit"


def write_data(work: Path, name: str, seed: int) -> None:
    """data/NAME: words that follow one another at random, so that a model soon overfits."""
    rng = random.Random(seed)
    words = "a few words that come again and again in an order of their own".split()
    text = " ".join(rng.choice(words) for _ in range(1500))
    (work / f"{name}.txt").write_text(text)
    options = [f"--input={name}.txt", f"--name={name}", "--tokenizer=byte"]
    process = train(work, options, work / "said.txt", script="prepare_text.py")
    assert process.wait(60) == 0, (work / "said.txt").read_text()


def losses(records: list[dict], key: str) -> dict[int, float]:
    return {r["step"]: r[key] for r in records if key in r and "step" in r}


def compare(run: Run, undisturbed: Path) -> None:
    """Lost, unless a run that has ended is the undisturbed one."""
    ours, theirs = whole(run.out / "ckpt.pt"), whole(undisturbed / "ckpt.pt")
    if ours is None:
        raise Lost("the last ckpt.pt is not whole")
    unsaved = {"best_val_loss"} if run.best_is_lost else set()
    for state in (ours, theirs):  # learning rates among them are set anew before every step
        state["optimizers"] = {k: o["state"] for k, o in state["optimizers"].items()}
    for name in theirs.keys() - {"config", "parts"} - unsaved:  # parts have names of chance
        if not same(ours[name], theirs[name]):
            raise Lost(f"{name!r} in ckpt.pt differs from that of the undisturbed run")
    best, their_best = whole(run.out / "best.pt"), whole(undisturbed / "best.pt")
    contents = ("model", "shards")
    if not run.best_is_lost and not (best and all(same(best[c], their_best[c]) for c in contents)):
        raise Lost("best.pt differs from that of the undisturbed run")
    logged, expected = read_log(run.out), read_log(undisturbed)
    for key in ("loss", "val_loss", "train_loss", "lr", "grad_norm"):
        got, wanted = losses(logged, key), losses(expected, key)
        wrong = [step for step, value in got.items() if wanted.get(step) != value]
        missing = [step for step in wanted if step not in got]
        if wrong or (missing and not run.log_is_damaged):
            raise Lost(f"the log's {key} differs at steps {wrong[:5]}, lacks steps {missing[:5]}")
    if leftover := [path.name for path in run.out.glob("*.tmp*")]:
        raise Lost(f"{' and '.join(leftover)} left behind")


class Soak:
    """The undisturbed runs, and the count of what became of the others."""

    def __init__(self, work: Path, seed: int, names: list[str], deadline: float):
        self.work, self.seed, self.names, self.deadline = work, seed, names, deadline
        self.start, self.undisturbed = time.monotonic(), {}
        self.times, self.lost = collections.Counter(), collections.Counter()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:7.1f} s  {text}", flush=True)

    def reference(self, config: str, processes: int) -> Path:
        if (config, processes) not in self.undisturbed:
            name = f"undisturbed-{len(self.undisturbed)}"
            run = Run(self.work, name, [*TINY, *CONFIGS[config]], processes, random.Random(0))
            run.start()
            run.wait_for_end()
            self.undisturbed[config, processes] = run.out
        return self.undisturbed[config, processes]

    def episode(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        processes = 2 if number % 8 in TORCHRUN else 1
        names = [name for name in self.names if processes in FAULTS[name].processes]
        if not names:
            return
        config = rng.choice(list(CONFIGS))
        undisturbed = self.reference(config, processes)
        run = Run(self.work, f"run-{number}", [*TINY, *CONFIGS[config]], processes, rng)
        self.say(f"episode {number}: {config}, {processes} process(es)")
        what = "start"
        try:
            run.start()
            while time.monotonic() < self.deadline:
                what = rng.choice(names)
                self.fault(run, what)
        except Finished:
            pass
        except Lost as error:
            return self.lose(run, what, error)
        try:
            run.wait_for_end()
            compare(run, undisturbed)
        except Lost as error:
            return self.lose(run, END, error)
        finally:
            self.times[END] += 1
        self.say(f"episode {number}: ended as the undisturbed run, bit for bit")
        shutil.rmtree(run.out)

    def fault(self, run: Run, name: str) -> None:
        """Inject one, see to it that the run goes on. Finished if the run had ended before it."""
        run.before = run.last_step
        detail = FAULTS[name](run)
        self.times[name] += bool(detail)
        ended, became = run.process.poll() is not None, "goes on"
        if not ended:
            run.wait_for_progress()
        if ended or run.process.poll() == 1:
            run.check_what_was_said()
            became = f"-> {run.start()}"
        if detail:
            self.say(f"{name:<10} {detail:<44} step {run.before} {became}")

    def lose(self, run: Run, what: str, error: Lost) -> None:
        run.stop()
        self.lost[what] += 1
        said = run.said.read_text(errors="replace")[-2000:] if run.said.exists() else ""
        self.say(f"LOST by {what}: {error}; see {run.out}\n{said}")

    def table(self) -> str:
        rows = [("fault", "times", "survived", "lost")]
        for name in [*self.names, "start", END]:
            if n := self.times[name] + (name == "start") * self.lost[name]:
                rows.append((name, n, n - self.lost[name], self.lost[name]))
        return "\n".join("{:<22}{:>7}{:>10}{:>6}".format(*row) for row in rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episode", type=int, default=0, help="run this one only")
    parser.add_argument("--faults", default=",".join(FAULTS), help="default: %(default)s")
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    parser.add_argument("--json", help="a file for the table")
    asked = parser.parse_args()
    if unknown := set(asked.faults.split(",")) - set(FAULTS):
        parser.error(f"--faults: {', '.join(unknown)}: choose of {', '.join(FAULTS)}")
    return asked


def main() -> int:
    asked, owner = arguments(), os.getpid()
    torch.set_num_threads(1)  # a process that has threads should not fork
    work = Path(tempfile.mkdtemp(prefix="soak-", dir=asked.folder)).resolve()
    names = asked.faults.split(",")
    is_small = shutil.disk_usage(work).total < 2**28
    names = [name for name in names if is_small or not FAULTS[name].needs_small_disk]
    soak = Soak(work, asked.seed, names, time.monotonic() + 60 * asked.minutes)
    for name, seed in (("toy", 1), ("other", 2)):
        write_data(work, name, seed)
    number = asked.episode or 1
    while time.monotonic() < soak.deadline:
        soak.episode(number)
        number += 1
        if asked.episode:
            break
    assert os.getpid() == owner, "a fork must never come here"
    print(soak.table())
    print(f"{sum(soak.times.values()) - soak.times[END]} faults, seed {asked.seed}")
    if asked.json:
        table = {name: {"times": n, "lost": soak.lost[name]} for name, n in soak.times.items()}
        Path(asked.json).write_text(json.dumps({"seed": asked.seed, "faults": table}, indent=1))
    if not soak.lost:
        shutil.rmtree(work)
    return int(bool(soak.lost))


if __name__ == "__main__":
    sys.exit(main())
