"""A checkpoint with the vocabulary of a dataset: its own, or resized token by token."""

import os

import torch

from core import UserError
from core.checkpoint import load_tokenizer
from core.dataset import read_meta
from core.distributed import print0
from core.kernels import pad_vocab
from core.tokenizer import Tokenizer, from_dict


def tokenizer_of_dataset(loaded: dict, dataset: str) -> Tokenizer:
    """The tokenizer of a checkpoint that names none: that of this dataset, or of its own if ""."""
    name = dataset or loaded["config"].get("dataset") or ""
    folder = os.path.join("data", name)
    if not (dataset or (name and os.path.isdir(folder))):
        raise UserError(
            f"{loaded['path']} names no tokenizer that folioGPT knows: sample.py takes that of a "
            "dataset by --dataset=NAME."
        )
    tokenizer = from_dict(read_meta(folder)["tokenizer"])
    if tokenizer.vocab_size != loaded["model_args"]["vocab_size"]:
        raise UserError(f"{folder} has another vocabulary than {loaded['path']}.")
    return tokenizer


def of_dataset(tokenizer: Tokenizer, loaded: dict, resuming: bool) -> dict:
    """The checkpoint with this tokenizer, the dataset's, if its weights can have it."""
    saved, size = loaded["tokenizer"], loaded["model_args"]["vocab_size"]
    if saved is None and size == tokenizer.vocab_size:
        print0(f"vocab    {loaded['path']} names no tokenizer: taken for the dataset's")
        return loaded
    if saved is None or resuming or saved["kind"] != tokenizer.kind:
        theirs = "unknown" if saved is None else saved["kind"]
        raise UserError(
            f"the dataset has another vocabulary ({tokenizer.kind}, {tokenizer.vocab_size} tokens) "
            f"than {loaded['path']} ({theirs}, {size} tokens): choose its own dataset."
        )
    return resize_token_embeddings(loaded, tokenizer)


def resize_token_embeddings(loaded: dict, tokenizer: Tokenizer) -> dict:
    """The checkpoint with the vocabulary of another tokenizer of the same kind.

    Tokens are matched by what they stand for, wherever their rows are. The row of a new token is
    sampled with the mean and deviation of the known ones, so that it is of their size:
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html, without the covariance.
    """
    old = {symbol: i for i, symbol in enumerate(load_tokenizer(loaded).symbols())}
    source = torch.tensor([old.get(symbol, -1) for symbol in tokenizer.symbols()])
    weights = dict(loaded["model"])
    for name in ("transformer.wte.weight", "lm_head.weight"):
        known = weights[name][: len(old)].float()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(source), known.size(1), generator=generator)
        rows = known.mean(0) + known.std(0) * noise
        rows[source >= 0] = known[source[source >= 0]]
        weights[name] = pad_vocab(rows)
    count = int((source >= 0).sum())
    print0(f"vocab    {count:,} of {len(source):,} tokens are the checkpoint's")
    args = {**loaded["model_args"], "vocab_size": tokenizer.vocab_size}
    return {**loaded, "model": weights, "model_args": args}
