"""log.jsonl, written and read: one JSON object a line, in the order in which things happened.

{"config": {...}, "versions": {...}, "device": "cpu", "parameters": 803456, "start_step": 0}
{"step": 0, "train_loss": 4.17, "val_loss": 4.18}                      after 0 updates
{"step": 1, "loss": 4.17, "lr": 0.001, "grad_norm": 1.9, "ms": 52.1, ...}    of update 1
"""

import json
import os


def read(path: str) -> list[dict]:
    """Every whole line; the last one may have been cut off by a crash."""
    records = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    records.append(json.loads(line))
    return records


def append(path: str, record: dict) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def rewind(path: str, step: int) -> None:
    """Drop what a resumed run will do again: updates after `step`, evaluations from `step` on."""
    kept = [
        record
        for record in read(path)
        if record.get("step", -1) < step or (record["step"] == step and "loss" in record)
    ]
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    os.replace(path + ".tmp", path)
