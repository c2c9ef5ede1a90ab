"""Checkpoints: saved atomically, loaded without running code.

    {"model": {name: tensor}, "model_args": {GPTConfig's fields}, "tokenizer": {its plain dict},
     "optimizers": [state dict, ...], "scaler": {...}, "step": 2000, "best_val_loss": 1.47,
     "config": {every setting}}

The names are nanoGPT's where it has the same thing, and its own ckpt.pt files load too.
"""

import itertools
import os
import pickle  # for the name of the error alone: nothing is ever unpickled as code
import shutil
from glob import glob

import torch

from core import UserError

LATEST, BEST = "ckpt.pt", "best.pt"


def save(checkpoint: dict, path: str) -> None:
    """Write to a temporary file, flush it to the disk, rename: a reader sees old or new, whole."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        if os.path.exists(temporary):
            os.remove(temporary)
        raise UserError(
            f"{path} could not be written ({error}); what stood there before is untouched."
        ) from error
    os.replace(temporary, path)
    if os.name == "posix":  # the rename itself must outlast a power cut
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def link(path: str, alias: str) -> None:
    """Let the file have a second name as well. Files are only ever replaced, so it stays as it is."""
    temporary = f"{alias}.tmp"
    if os.path.exists(temporary):
        os.remove(temporary)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, alias)


def find(path: str) -> str:
    """The file to sample from: `path` itself, or of a run's folder its best, else its latest."""
    if not os.path.isdir(path):
        return path
    best = os.path.join(path, BEST)
    return best if os.path.exists(best) else os.path.join(path, LATEST)


def load(path: str) -> dict:
    """The checkpoint in a file, in the form described above, its tensors mapped from the file.

    Raises UserError where there is none, or it is damaged, or something else altogether.
    """
    if not os.path.exists(path):
        raise UserError(f"there is no checkpoint {path}: train one, or name another by --out_dir.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{path} is damaged or no checkpoint at all: {reason}") from error
    if not isinstance(loaded, dict) or not {"model", "model_args"} <= set(loaded):
        raise UserError(f"{path} is no checkpoint of folioGPT or nanoGPT.")
    return loaded if "tokenizer" in loaded else from_nanogpt(loaded)


def from_nanogpt(checkpoint: dict) -> dict:
    """nanoGPT's checkpoint in our form. Its tokenizer is GPT-2's, or unknown: None."""
    args = dict(checkpoint["model_args"])
    # nanoGPT rounds GPT-2's vocabulary up; which rows are real is told by the tokenizer
    gpt2 = args["vocab_size"] in (50257, 50304)
    args |= {"activation": "gelu", "vocab_size": 50257 if gpt2 else args["vocab_size"]}
    weights = {
        name.removeprefix("_orig_mod."): tensor  # left there by its torch.compile
        for name, tensor in checkpoint["model"].items()
        if not name.endswith(".attn.bias")  # a causal mask that old versions kept
    }
    optimizer = checkpoint.get("optimizer")
    vocabulary = ("transformer.wte.weight", "lm_head.weight")
    weights |= {name: pad_rows(weights[name]) for name in vocabulary}
    if optimizer:  # its first parameter is wte
        moments = optimizer["state"].get(0, {})
        moments |= {key: pad_rows(moments[key]) for key in ("exp_avg", "exp_avg_sq") if moments}
    return {
        "model": weights,
        "model_args": args,
        "tokenizer": {"kind": "gpt2"} if gpt2 else None,
        "optimizers": [optimizer] if optimizer else [],
        "scaler": {},
        "step": checkpoint.get("iter_num", 0),
        "best_val_loss": float(checkpoint.get("best_val_loss", float("inf"))),
        "config": checkpoint.get("config", {}),
    }


def pad_rows(table: torch.Tensor) -> torch.Tensor:
    """(V, C) with rows of zeros up to the next multiple of 64, as GPTConfig pads a vocabulary."""
    return torch.nn.functional.pad(table, (0, 0, 0, -len(table) % 64))


def set_aside(folder: str) -> str | None:
    """Move an earlier run's files out of the way, to FOLDER-1, -2, ...; the new place, if any."""
    files = [os.path.join(folder, name) for name in (LATEST, BEST, "log.jsonl")]
    files = [path for path in files if os.path.exists(path)]
    if not files:
        return None
    aside = next(p for n in itertools.count(1) if not os.path.exists(p := f"{folder}-{n}"))
    os.makedirs(aside)
    for path in files:
        os.rename(path, os.path.join(aside, os.path.basename(path)))
    return aside


def newest_run(root: str = "out") -> str:
    """The folder under `root` whose checkpoint was written last."""
    found = glob(os.path.join(root, "**", LATEST), recursive=True)
    if not found:
        raise UserError(f"no checkpoint under {root}/: train one, or name its folder by --out_dir.")
    return os.path.dirname(max(found, key=os.path.getmtime))
