"""log.jsonl, one JSON object per line; the screen and trackers get the same.

{"config": {...}, "versions": {...}, "device": "...", "parameters": 803456, "start_step": 0}
{"step": 0, "train_loss": 4.17, "val_loss": 4.18}                      after 0 steps
{"step": 1, "loss": 4.17, "lr": 0.001, "grad_norm": 1.9, "ms": 52.1, ...}    of step 1
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from core import UserError, checkpoint
from core.device import device_name, peak_flops
from core.distributed import RANK, WORLD_SIZE, all_reduce_sum, print0


def append(path: str, record: dict) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: str) -> list[dict]:
    """Every whole line; a crash may have cut off the last one."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def rewind(path: str, step: int) -> None:
    """Drop what a resumed run does again: training lines after `step`, evaluations from it on."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        for record in read(path):
            at = record.get("step", -1)
            if at < step or (at == step and "loss" in record):
                file.write(json.dumps(record) + "\n")
    os.replace(f"{path}.tmp", path)


def check_finite(what: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{what} is {', '.join(map(str, values))}: training has diverged; lower "
            "--learning_rate or --muon_lr, or raise --warmup_iters. The last checkpoint is kept."
        )


def opening_report(settings: dict, model, data, optimizers: dict, how: str) -> dict:
    """Print what will be trained, on what and how; the facts for the first line of log.jsonl."""
    c, batch, device = model.config, data.batch_size, device_name(data.device)
    parameters = sum(p.numel() for p in model.parameters())
    splits = " + ".join(f"{split.length:,} {name}" for name, split in data.splits.items())
    print0(f"device   {WORLD_SIZE} x {device}, {how}")
    print0(f"data     {data.folder}: {splits} tokens of {data.meta['source']['name']}")
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
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    facts = {"config": settings, "versions": versions, "device": device, "world_size": WORLD_SIZE}
    return facts | {"parameters": parameters, "optimizers": names, "source": data.meta["source"]}


def trackers(settings: dict) -> list[Callable[[dict], None]]:
    """Functions that pass each record on, as wandb_log and tensorboard_log ask for."""
    wanted: list[Callable[[dict], None]] = []
    if settings["wandb_log"]:
        import wandb

        project, name = settings["wandb_project"], settings["wandb_run_name"]
        run = wandb.init(project=project, name=name, config=settings)
        wanted.append(lambda record: run.log(record, step=record["step"]))
    if settings["tensorboard_log"]:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(settings["out_dir"])

        def add_scalars(record: dict) -> None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, record["step"])
            writer.flush()  # what is written outlives a crash

        wanted.append(add_scalars)
    return wanted


class RunLog:
    """The log of one run, with the speed since the line before."""

    def __init__(self, settings: dict, facts: dict, model, data, start_step: int, resumed: bool):
        self.data, self.max_iters = data, settings["max_iters"]
        self.path = os.path.join(settings["out_dir"], "log.jsonl")
        self.writes = RANK == 0 and not settings["eval_only"]
        peak = peak_flops(data.device, settings["peak_tflops"])
        self.peak_tokens_per_s = peak and peak * WORLD_SIZE / model.flops_per_token()
        self.step, self.time = start_step, time.perf_counter()
        if not self.writes:
            return
        if resumed:
            rewind(self.path, start_step)
        elif backup := checkpoint.backup_previous_run(settings["out_dir"]):
            print0(f"run      the earlier run in {settings['out_dir']} is now {backup}")
        append(self.path, {**facts, "start_step": start_step})
        self.trackers = trackers(settings)

    def write(self, record: dict) -> None:
        if self.writes:
            append(self.path, record)
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
        check_finite(f"the loss of step {step}", mean_loss)
        now = time.perf_counter()
        seconds, T = (now - self.time) / (step - self.step), self.data.T
        tokens = self.data.sequences_before(step) * T
        speed = (tokens - self.data.sequences_before(self.step) * T) / (now - self.time)
        mfu = speed / self.peak_tokens_per_s if self.peak_tokens_per_s else None
        self.step, self.time = step, now
        left = timedelta(seconds=round(seconds * (self.max_iters - step)))
        print0(
            f"step {step}/{self.max_iters}  loss {mean_loss:.4f}  lr {lr:.2e}  "
            f"{seconds * 1e3:.1f} ms  {speed:,.0f} tokens/s  "
            f"mfu {f'{mfu:.1%}' if mfu else 'unknown'}  {left} left"
        )
        record = {"step": step, "loss": mean_loss, "lr": lr, "grad_norm": grad_norm.item()}
        self.write(
            {**record, "ms": seconds * 1e3, "tokens_per_s": speed, "mfu": mfu, "tokens": tokens}
        )
