"""What nanoGPT leaves behind, read as ours: data folders with meta.pkl or none, and ckpt.pt."""

import os
import pickle
import re

import numpy as np
import torch

from core import UserError
from core.kernels import pad_vocab
from core.tokenizer import CharTokenizer

VOCAB_TABLES = ("transformer.wte.weight", "lm_head.weight")  # one row per token


class PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, lists and dicts; a class or function would be code that runs."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def read_meta(folder: str) -> dict:
    """What is known of a data folder: the characters of meta.pkl, or else GPT-2's tokens."""
    path, train_bin = (os.path.join(folder, name) for name in ("meta.pkl", "train.bin"))
    if os.path.exists(path):
        try:
            with open(path, "rb") as file:
                ids = PlainUnpickler(file).load()["stoi"]
            chars = sorted(ids, key=ids.get)
            if [ids[char] for char in chars] != list(range(len(chars))):
                raise ValueError("its stoi does not count from 0")
            tokenizer = CharTokenizer(chars).to_dict()
        except Exception as error:  # a pickle can be anything
            raise UserError(
                f"{path} is not one of nanoGPT's characters ({error}): write a meta.json, as "
                "data/README.md shows."
            ) from None
        return {"tokenizer": tokenizer, "source": {"name": path}}
    if not os.path.exists(train_bin):
        raise UserError(f"there is no dataset {folder}: it has no train.bin.")
    # nearly every word of a text is an id above those of single bytes
    if np.fromfile(train_bin, "<u2", 10000).max(initial=0) < 256:
        raise UserError(
            f"{folder} has no meta.json that names its tokenizer, and its ids are not GPT-2's: run "
            "its prepare script again, or write one, as data/README.md shows."
        )
    return {"tokenizer": {"kind": "gpt2"}, "source": {"name": "GPT-2, since it has no meta.json"}}


def read_checkpoint(loaded: dict, path: str) -> dict:
    """Its checkpoint in the form of core/checkpoint.py; the tokenizer is GPT-2's, or unknown."""
    try:
        return converted(loaded)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a whole checkpoint of nanoGPT: {error!r}.") from None


def converted(loaded: dict) -> dict:
    args, optimizer = {**loaded["model_args"], "activation": "gelu"}, loaded.get("optimizer")
    is_gpt2 = args["vocab_size"] in (50257, 50304)  # nanoGPT pads GPT-2's vocabulary
    args["vocab_size"] = 50257 if is_gpt2 else args["vocab_size"]
    weights = {
        re.sub(r"^(_orig_mod\.|module\.)+", "", name): tensor  # from torch.compile and DDP
        for name, tensor in loaded["model"].items()
        if not name.endswith(".attn.bias")  # a causal mask
    }
    args["untied_head"] = not torch.equal(*(weights[name] for name in VOCAB_TABLES))
    for name in VOCAB_TABLES:
        weights[name] = pad_vocab(weights[name])
    if optimizer:  # its parameters are numbered: wte is the first, an untied head the last matrix
        last = len(optimizer["param_groups"][0]["params"]) - 1
        for number in {0, last} if args["untied_head"] else {0}:
            moments = optimizer["state"].get(number, {})
            for name in {"exp_avg", "exp_avg_sq"} & set(moments):
                moments[name] = pad_vocab(moments[name])
    return {
        "model": weights,
        "model_args": args,
        "tokenizer": {"kind": "gpt2"} if is_gpt2 else None,
        "optimizers": {"adamw": optimizer} if optimizer else {},
        "step": loaded.get("iter_num", 0),
        "best_val_loss": float(loaded.get("best_val_loss", float("inf"))),
        "config": loaded.get("config", {}),
    }
