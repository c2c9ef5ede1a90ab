"""log.jsonl, written and read: one JSON object a line, in the order in which things happened.

{"config": {...}, "versions": {...}, "device": "...", "parameters": 803456, "start_step": 0}
{"step": 0, "train_loss": 4.17, "val_loss": 4.18}                      after 0 updates
{"step": 1, "loss": 4.17, "lr": 0.001, "grad_norm": 1.9, "ms": 52.1, ...}    of update 1
"""

import json
import os
from collections.abc import Callable

from core import UserError


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
    """Drop what a resumed run does again: updates after `step`, evaluations from `step` on."""
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        for record in read(path):
            at = record.get("step", -1)
            if at < step or (at == step and "loss" in record):
                file.write(json.dumps(record) + "\n")
    os.replace(path + ".tmp", path)


def trackers(config: dict, model_args: dict) -> list[Callable[[dict], None]]:
    """Where else records go, as the settings wandb_log and tensorboard_log say: functions that
    take each record. Their packages are imported only here. UserError if one is not installed."""
    wanted: list[Callable[[dict], None]] = []
    try:
        if config["wandb_log"]:
            package = "wandb"
            import wandb

            names = {"project": config["wandb_project"], "name": config["wandb_run_name"]}
            run = wandb.init(**names, config={**config, **model_args})
            wanted.append(lambda record: run.log(record, step=record["step"]))
        if config["tensorboard_log"]:
            package = "tensorboard"
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(config["out_dir"])

            def add(record: dict) -> None:
                for name, value in record.items():
                    if name != "step" and value is not None:
                        writer.add_scalar(name, value, record["step"])
                writer.flush()  # what is written outlives a crash

            wanted.append(add)
    except ImportError:
        raise UserError(
            f"{package}_log=True needs `pip install {package}`; without it "
            f"{config['out_dir']}/log.jsonl says the same."
        ) from None
    return wanted
