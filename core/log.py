"""log.jsonl, one JSON object per line; the screen and trackers get the same.

{"config": {...}, "versions": {...}, "device": "...", "parameters": 803456, "start_step": 0,
 "run_id": "..."}
{"step": 0, "train_loss": 4.17, "val_loss": 4.18}                      after 0 steps
{"step": 1, "loss": 4.17, "lr": 0.001, "grad_norm": 1.9, "ms": 52.1, ...}    of step 1
{"step": 7, "grad_norm": null}       step 7 was skipped: its gradient was NaN or infinite
"""

import json
import math
import os
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import numpy as np
import torch

from core import UserError, checkpoint
from core.device import device_name
from core.distributed import RANK, WORLD_SIZE, all_reduce_sum, any_rank, is_sharded, print0
from core.files import replacing
from core.run_folder import backup_previous_run


def append(path: str, record: dict) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: str) -> list[dict]:
    """Every record; lines that are none, such as a crash may leave, are left out."""
    records = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    records.append(json.loads(line))
    records = [record for record in records if isinstance(record, dict)]
    return [record for record in records if isinstance(record.get("step", 0), int)]


def rewind(path: str, step: int) -> None:
    """Drop what a resumed run does again: training lines after `step`, evaluations from it on."""
    records = read(path)
    if os.path.exists(path):
        with open(path, "rb") as file:
            damaged = sum(bool(line.strip()) for line in file) - len(records)
        if damaged:
            print0(f"warning  {damaged} damaged lines of {path} are left out")
    with replacing(path, "w", encoding="utf-8") as file:
        for record in records:
            at = record.get("step", -1)
            if at < step or (at == step and "val_loss" not in record):
                file.write(json.dumps(record) + "\n")


def check_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"{what} is {value}: training has diverged; lower --learning_rate or --muon_lr, or "
            "raise --warmup_iters. The last checkpoint is kept."
        )


def require_targets(split: str, targets: float, cut_short: bool) -> float:
    """The number of targets that a mean is over; UserError if a whole evaluation has none."""
    if not targets and not cut_short:
        raise UserError(
            f"the sequences of {split} that are evaluated have no target, all is masked: raise "
            "--eval_iters, or prepare the data with other examples."
        )
    return max(1.0, targets)


def opening_report(s: dict, model, data, optimizers: dict, step: int, dtype, compiled) -> dict:
    """Print what will be trained, on what and how; the facts for the first line of log.jsonl."""
    c, batch, device = model.config, data.batch_size, device_name(data.device)
    parameters = sum(p.numel() for p in model.parameters())
    splits = " + ".join(f"{split.length:,} {name}" for name, split in data.splits.items())
    source = data.meta["source"]["name"]
    how = "compiled" if compiled else "eager"
    print0(f"device   {WORLD_SIZE} x {device}, matmul dtype {str(dtype)[6:]}, {how}")
    print0(f"data     {data.folder}: {splits} tokens of {source}")
    print0(
        f"model    {parameters:,} parameters: {c.n_layer} layers, {c.n_head} heads, {c.n_embd} "
        f"channels, context {c.block_size}, vocabulary {c.vocab_size}"
    )
    names = {}
    for kind, optimizer in optimizers.items():
        names[kind] = [name for group in optimizer.param_groups for name in group["names"]]
        modules = sorted({name.split(".")[-2] for name in names[kind]})
        print0(f"{kind:<8} {len(names[kind])} tensors: {', '.join(modules)}")
    print0(f"batch    {batch * data.T:,} tokens per step: {batch} sequences of {data.T} tokens")
    run = f"{s['out_dir']}: steps {step} to {s['max_iters']}"
    print0(f"run      {'one evaluation, nothing is saved' if s['eval_only'] else run}")
    for warning in warnings_about(s):
        print0(f"warning  {warning}")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    facts = {"config": s, "versions": versions, "device": device, "world_size": WORLD_SIZE}
    return facts | {"parameters": parameters, "optimizers": names, "source": data.meta["source"]}


def warnings_about(s: dict) -> Iterator[str]:
    """Sentences about settings that are accepted but are probably a mistake."""
    if s["decay_lr"] and s["lr_schedule"] != "constant" and s["min_lr"] > s["learning_rate"]:
        rate = f"learning_rate={s['learning_rate']:g}"
        yield f"min_lr={s['min_lr']:g} is above {rate}: the learning rate rises"
    if s["decay_lr"] and not s["warmup_tokens"] and 0 < s["max_iters"] <= s["warmup_iters"]:
        steps, warmup = s["max_iters"], s["warmup_iters"]
        yield f"max_iters={steps} ends within warmup_iters={warmup}: the rate stays below its peak"


class RunLog:
    """The log of one run, with the speed since the line before."""

    def __init__(self, settings: dict, facts: dict, model, data, start_step: int, resumed: bool):
        self.data, self.max_iters, self.out_dir = data, settings["max_iters"], settings["out_dir"]
        self.path = os.path.join(self.out_dir, "log.jsonl")
        self.writes = RANK == 0 and not settings["eval_only"]
        peak = settings["peak_tflops"] * 1e12  # FLOP/s
        if data.device.type == "cuda" and not peak:
            from core.extras import gpus

            peak = gpus.peak_flops(data.device)
        self.peak_tokens_per_s = peak and peak * WORLD_SIZE / model.flops_per_token()
        self.step, self.time = start_step, time.perf_counter()
        self.failures: set[str] = set()
        self.is_sharded, self.trackers = is_sharded(model), []
        self.skip_nonfinite, self.skips, self.skipped_step = settings["skip_nonfinite"], 0, 0
        if not self.writes:
            return
        if resumed:
            rewind(self.path, start_step)
        elif backup := backup_previous_run(self.out_dir):
            print0(f"run      the earlier run in {self.out_dir} is now {backup}")
        run_ids = (r["run_id"] for r in read(self.path) if "run_id" in r)
        run_id = next(run_ids, uuid.uuid4().hex)
        append(self.path, {**facts, "start_step": start_step, "run_id": run_id})
        if settings["wandb_log"] or settings["tensorboard_log"]:
            from core.extras import trackers

            self.trackers = trackers.start(settings, run_id, start_step)

    def attempt(self, write: Callable[[], None]) -> bool:
        """Whether a write to the disk succeeded; a failure is warned of, once, and outlived."""
        try:
            write()
        except (OSError, UserError) as error:
            if str(error) not in self.failures:
                print0(f"warning  {error}; training goes on")
            self.failures.add(str(error))
            return False
        return True

    def save(self, state: dict, path: str, also: str) -> bool:
        """Whether a checkpoint is written, by the ranks that write; all ranks ask, and agree."""
        save = checkpoint.save
        if self.is_sharded:
            from core.extras import parts

            save = parts.save
        writes = self.writes or self.is_sharded
        return not any_rank(writes and not self.attempt(lambda: save(state, path, also)))

    def write(self, record: dict) -> None:
        # JSON has no NaN and no infinity
        record = {k: v if v is None or math.isfinite(v) else None for k, v in record.items()}
        if self.writes:
            self.attempt(lambda: append(self.path, record))
            for track in self.trackers:
                track(record)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        start = time.perf_counter()
        yield
        self.time += time.perf_counter() - start

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        print0(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        self.write({"step": step, **figures})

    def training(self, step: int, loss: torch.Tensor, lr: float, grad_norm: torch.Tensor) -> None:
        """The line of `step` (from 1). loss: this rank's part of it."""
        mean_loss = all_reduce_sum(loss)[0]
        now = time.perf_counter()
        ms, T = (now - self.time) / (step - self.step) * 1e3, self.data.T
        tokens = self.data.sequences_before(step) * T
        speed = (tokens - self.data.sequences_before(self.step) * T) / (now - self.time)
        mfu = speed / self.peak_tokens_per_s if self.peak_tokens_per_s else None
        self.step, self.time = step, now
        time_per_step = f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
        left = timedelta(seconds=round(ms / 1e3 * (self.max_iters - step)))
        print0(
            f"step {step}/{self.max_iters}  loss {mean_loss:.4f}  {time_per_step}  "
            f"{speed:,.0f} tokens/s  {f'mfu {mfu:.0%}  ' if mfu else ''}{left} left"
        )
        record = {"step": step, "loss": mean_loss, "lr": lr, "grad_norm": grad_norm.item()}
        self.write({**record, "ms": ms, "tokens_per_s": speed, "mfu": mfu, "tokens": tokens})

    def skipped(self, step: int, grad_norm: torch.Tensor) -> None:
        """A step that left the weights as they are; UserError after too many in a row."""
        print0(f"step {step}: the gradient is {grad_norm.item()}, the weights stay as they are")
        self.write({"step": step, "grad_norm": grad_norm.item()})
        self.skips = self.skips + 1 if step == self.skipped_step + 1 else 1
        self.skipped_step = step
        if self.skips > self.skip_nonfinite:
            check_finite(f"the gradient of {self.skips} steps in a row", grad_norm.item())

    def next_command(self, tokenizer) -> str:
        """What shows what was learned: the dataset's own command, or sample.py with a prompt."""
        command = self.data.meta["use"]
        if not command:
            prompt = "Once upon a time"  # bytes and their pairs encode any text
            if tokenizer.kind == "char":
                x, _ = self.data.splits["train"].sequences(np.zeros(1, int), min(20, self.data.T))
                ids = [i for i in x[0] if i not in tokenizer.special.values()]
                prompt = tokenizer.decode(ids).strip().partition("\n")[0]
            script = os.path.join(os.path.dirname(sys.argv[0]), "sample.py")
            command = f"python {shlex.quote(script)} --out_dir={{out_dir}}"
            command += f" --start={shlex.quote(prompt)}"
        return command.replace("{out_dir}", shlex.quote(self.out_dir))
