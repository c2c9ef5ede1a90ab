"""Checkpoints: saved atomically, loaded without running code.

    {"model": {name: tensor}, "model_args": {GPTConfig's fields}, "tokenizer": {its plain dict},
     "task": None or what a dataset's meta.json says of it, "optimizers": [state dict, ...],
     "scaler": {...}, "step": 2000, "best_val_loss": 1.47, "config": {every setting}}

nanoGPT's ckpt.pt files and Hugging Face's GPT-2 folders are read into the same form.
"""

import itertools
import os
import pickle  # for the name of an error; nothing is unpickled but tensors and plain types
from glob import glob

import torch

from core import UserError, huggingface
from core.tokenizer import Tokenizer, from_dict

LATEST, BEST = "ckpt.pt", "best.pt"


def save(state: dict, path: str) -> None:
    """Write to a temporary file, flush it to the disk, rename: a reader sees old or new, whole."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
        if os.path.exists(temporary):
            os.remove(temporary)
        raise UserError(f"{path} can't be written ({error}); what stood there is kept.") from error


def load(path: str) -> dict:
    """The checkpoint in a file, in the form described above, its tensors mapped from the file.

    path: of the file, or of a Hugging Face folder.
    Raises UserError where there is none, or it is damaged, or something else altogether.
    """
    if huggingface.is_folder(path):
        return huggingface.read(path)
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


def from_nanogpt(loaded: dict) -> dict:
    """nanoGPT's checkpoint in our form. Its tokenizer is GPT-2's, or unknown: None."""
    args, optimizer = dict(loaded["model_args"]), loaded.get("optimizer")
    gpt2 = args["vocab_size"] in (50257, 50304)  # it rounds GPT-2's vocabulary up
    args |= {"activation": "gelu", "vocab_size": 50257 if gpt2 else args["vocab_size"]}
    weights = {
        name.removeprefix("_orig_mod."): tensor  # left there by its torch.compile
        for name, tensor in loaded["model"].items()
        if not name.endswith(".attn.bias")  # a causal mask
    }

    def pad(table: torch.Tensor) -> torch.Tensor:  # the vocabulary's rows, to a multiple of 64
        return torch.nn.functional.pad(table, (0, 0, 0, -len(table) % 64))

    weights |= {name: pad(weights[name]) for name in ("transformer.wte.weight", "lm_head.weight")}
    if optimizer and (moments := optimizer["state"].get(0)):  # of wte, its first parameter
        moments |= {name: pad(moments[name]) for name in ("exp_avg", "exp_avg_sq")}
    return {
        "model": weights,
        "model_args": args,
        "tokenizer": {"kind": "gpt2"} if gpt2 else None,
        "optimizers": [optimizer] if optimizer else [],
        "scaler": {},
        "step": loaded.get("iter_num", 0),
        "best_val_loss": float(loaded.get("best_val_loss", float("inf"))),
        "config": loaded.get("config", {}),
    }


def with_vocabulary(loaded: dict, wanted: Tokenizer) -> tuple[dict, int]:
    """The checkpoint with the rows of its vocabulary those of another tokenizer of the same kind,
    and how many of these tokens it knew: by what they stand for, wherever their rows were.

    The row of a new token is drawn as the known ones are spread, so that it is of their size and
    gentle learning rates serve: https://nlp.stanford.edu/~johnhew/vocab-expansion.html, less the
    covariance.
    """
    old = {symbol: i for i, symbol in enumerate(from_dict(loaded["tokenizer"]).symbols())}
    source = torch.tensor([old.get(symbol, -1) for symbol in wanted.symbols()])
    weights = dict(loaded["model"])
    for name in ("transformer.wte.weight", "lm_head.weight"):
        rows, known = weights[name][source], weights[name][: len(old)].float()
        noise = torch.randn(len(rows), known.size(1), generator=torch.Generator().manual_seed(0))
        drawn = (known.mean(0) + known.std(0) * noise).to(rows.dtype)
        rows[source < 0] = drawn[source < 0]
        weights[name] = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % 64))
    args = {**loaded["model_args"], "vocab_size": wanted.vocab_size}
    changed = {"model": weights, "model_args": args, "tokenizer": wanted.to_dict()}
    return {**loaded, **changed}, int((source >= 0).sum())


def find(path: str, progress=None) -> str:
    """What to load: of a run's folder its best checkpoint, else its latest; of `gpt2` and its
    like the folder of the released weights, downloaded at first use; else `path` itself.

    progress: tqdm or its like.
    """
    if path in huggingface.RELEASED and not os.path.exists(path):
        return huggingface.released(path, progress)
    if not os.path.isdir(path) or huggingface.is_folder(path):
        return path
    best = os.path.join(path, BEST)
    return best if os.path.exists(best) else os.path.join(path, LATEST)


def newest_run(root: str = "out") -> str:
    """The folder under `root` whose checkpoint was written last."""
    found = glob(os.path.join(root, "**", LATEST), recursive=True)
    if not found:
        raise UserError(f"no checkpoint under {root}/: train one, or name its folder by --out_dir.")
    return os.path.dirname(max(found, key=os.path.getmtime))


def set_aside(folder: str) -> str | None:
    """Rename the folder of an earlier run to FOLDER-1, -2, ...; its new name, None if none was."""
    if not any(os.path.exists(os.path.join(folder, name)) for name in (LATEST, BEST, "log.jsonl")):
        return None
    aside = next(p for n in itertools.count(1) if not os.path.exists(p := f"{folder}-{n}"))
    os.rename(folder, aside)
    return aside
